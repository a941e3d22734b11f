//! Text that others wrote, made safe to show.
//!
//! Names of classes and layers come from whoever made a model, refusals from a node. Printed as they are, they could
//! move the cursor, colour or clear a terminal, pretend to be further lines, or turn the order of letters round.

/// As part of a line: what steers a terminal or the order of letters becomes `U+FFFD`, line ends included.
pub fn one_line(text: &str) -> String {
    text.replace(steers, "\u{fffd}")
}

/// Whole output, which has lines of its own: the same, but line ends stay.
pub fn lines(text: &str) -> String {
    text.replace(|c| c != '\n' && steers(c), "\u{fffd}")
}

/// A table: cells of a column one below the other, the first to the left, the others to the right. Cells must be safe.
pub fn columns(head: &[&str], rows: &[impl AsRef<[String]>]) -> String {
    let head: Vec<String> = head.iter().map(|h| (*h).into()).collect();
    let mut all: Vec<&[String]> = vec![&head];
    all.extend(rows.iter().map(AsRef::as_ref));
    let rows = all;
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &&[String]| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(
            |(i, (cell, &width))| {
                if i == 0 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") }
            },
        );
        cells.collect::<String>().trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Controls, separators of lines and paragraphs, and marks that change the direction of what follows.
fn steers(c: char) -> bool {
    let direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || direction || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["Größe", "1.5"], ["x", "12.25"]].map(|row| row.map(String::from));
        let table = columns(&["label", "n"], &rows);
        assert_eq!(table, "  label      n\n  Größe    1.5\n  x      12.25");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        for bad in ["\u{1b}[2J", "\r", "\t", "\u{7f}", "\u{9b}31m", "\u{202e}", "\u{2066}", "\u{2028}", "\0"]
        {
            for shown in [one_line(bad), lines(bad)] {
                assert!(!shown.contains(steers) && shown.starts_with('\u{fffd}'), "{bad:?}");
            }
        }
        assert_eq!((one_line("a\nb").as_str(), lines("a\nb").as_str()), ("a\u{fffd}b", "a\nb"));
        for good in ["no_tumor", "Größe 3µm", "腫瘍", "/backbone/backbone.0/Conv"] {
            assert_eq!((one_line(good).as_str(), lines(good).as_str()), (good, good));
        }
    }
}
