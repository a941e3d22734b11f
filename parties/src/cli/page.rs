//! The demo's report of a detection: one page that shows files beside it.

use sharelens::outcome::{Detection, Outcome};
use sharelens::report::LAYER_COLUMNS;
use sharelens::text;

use super::document::Document;
use super::draw;

const STYLE: &str = "body{font:16px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}\
figure{display:inline-block;margin:0 1em 1em 0;vertical-align:top;width:45%}figure img{width:100%}\
img.pixels{image-rendering:pixelated}table{border-collapse:collapse;margin:1em 0}\
td,th{padding:.1em .8em;text-align:right}td:first-child,th:first-child{text-align:left}\
i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";

/// The page for a document of `demo`, with the drawn boxes and, if there is a picture of it, what server 0 saw.
pub fn html(document: &Document, boxes: &str, view: Option<&str>) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{0}</title>\
         <style>{STYLE}</style></head>\n<body>\n<h1>{0} on {1}</h1>\n",
        escape(&document.model),
        escape(&document.image)
    );
    page += &format!(
        "<figure><img src=\"{boxes}\" alt=\"boxes\"><figcaption>What the client sees</figcaption></figure>\n"
    );
    if let Some(view) = view {
        page += &format!(
            "<figure><img class=\"pixels\" src=\"{view}\" alt=\"noise\"><figcaption>What server 0 saw of the \
             image</figcaption></figure>\n"
        );
    }
    if let Outcome::Detection(found) = &document.result {
        let rows = found.rows().into_iter().zip(&found.labels).map(|(row, &label)| {
            let [r, g, b] = draw::colour(label);
            let mut cells = row.map(|cell| escape(&cell));
            cells[0] = format!("<i style=\"background:rgb({r},{g},{b})\"></i>{}", cells[0]);
            cells.to_vec()
        });
        page += &table(&Detection::COLUMNS, rows);
    }
    for warning in document.warnings().into_iter().chain(document.result.warnings()) {
        page += &format!("<p><b>Warning:</b> {}</p>\n", escape(&warning.to_string()));
    }
    if let Some(difference) = &document.difference {
        page += &format!("<p>{}</p>\n", escape(&difference.to_string()));
    }
    if let Some(cost) = &document.cost {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        page += &format!(
            "<p>Preprocessing {:.3} s, {:.2} MiB dealt{}. Online {:.3} s, {} rounds, {:.2} MiB sent by each server.</p>\n",
            cost.preprocessing_seconds(),
            mib(cost.offline.bytes.helper),
            if cost.overlapped { ", beside the online phase" } else { "" },
            cost.online.seconds,
            cost.online.rounds,
            mib(cost.online.bytes.server0),
        );
        let layers = cost.layers.iter().map(|layer| layer.row().map(|cell| escape(&cell)).to_vec());
        page += &table(&LAYER_COLUMNS, layers);
    }
    page + "</body>\n</html>\n"
}

/// Cells are HTML already.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |tag: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|c| format!("<{tag}>{c}</{tag}>")).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = row("th", head.iter().map(|h| (*h).into()).collect());
    let rows: String = rows.map(|cells| row("td", cells)).collect();
    format!("<table>\n{head}{rows}</table>\n")
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text::one_line(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use sharelens::outcome::Difference;

    use super::*;

    #[test]
    fn names_cannot_break_out() {
        let found = Detection {
            boxes: vec![[1.0, 2.0, 3.0, 4.0]],
            labels: vec![1],
            scores: vec![0.5],
            classes: vec![Some("<b>".into())],
            settled: false,
        };
        let document = Document {
            model: "<script>\u{202e}\u{1b}".into(),
            version: None,
            owner: None,
            mode: None,
            ring: "rns",
            image: "a\"b&c".into(),
            in_range: None,
            ranges: None,
            result: Outcome::Detection(found),
            plain: None,
            float: None,
            difference: Some(Difference { max_abs_error: 0.25, differs: None }),
            cost: None,
            wan: None,
        };
        let page = html(&document, "boxes.png", None);
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&lt;b&gt;") && page.contains("a&quot;b&amp;c")
        );
        assert!(!page.contains(['\u{202e}', '\u{1b}']));
        assert!(!page.contains("<script") && page.contains("--nms-steps") && page.contains("<td>0.500</td>"));
        assert!(
            !page.contains("server0")
                && html(&document, "b", Some("server0-view.png")).contains("server0-view.png")
        );
    }
}
