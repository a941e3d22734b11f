//! The demo's report of a detection: one page that shows files beside it.

use serde_json::Value;

use super::{draw, result, text};

const STYLE: &str = "body{font:16px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}\
figure{display:inline-block;margin:0 1em 1em 0;vertical-align:top;width:45%}figure img{width:100%}\
img.pixels{image-rendering:pixelated}table{border-collapse:collapse;margin:1em 0}\
td,th{padding:.1em .8em;text-align:right}td:first-child,th:first-child{text-align:left}\
i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";

/// The page for a document of `demo`, with the drawn boxes and, if there is a picture of it, what server 0 saw.
pub fn html(json: &Value, boxes: &str, view: Option<&str>) -> String {
    let shown = |v: &Value| escape(v.as_str().unwrap_or(""));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{0}</title>\
         <style>{STYLE}</style></head>\n<body>\n<h1>{0} on {1}</h1>\n",
        shown(&json["model"]),
        shown(&json["image"])
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
    let labels = json["result"]["labels"].as_array().map_or(&[][..], Vec::as_slice);
    let rows = result::rows(&json["result"]).into_iter().zip(labels).map(|(row, label)| {
        let [r, g, b] = draw::colour(label.as_u64().unwrap_or(0) as usize);
        let mut cells = row.map(|cell| escape(&cell));
        cells[0] = format!("<i style=\"background:rgb({r},{g},{b})\"></i>{}", cells[0]);
        cells.to_vec()
    });
    page += &table(&result::COLUMNS, rows);
    if let Some(warning) = result::warning(&json["result"]) {
        page += &format!("<p><b>Warning:</b> {}</p>\n", escape(warning));
    }
    page += &format!("<p>{}</p>\n", escape(&result::differ_words(json)));
    let cost = &json["cost"];
    let mib = |v: &Value| v.as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
    let seconds = |v: &Value| v["seconds"].as_f64().unwrap_or(f64::NAN);
    page += &format!(
        "<p>Preprocessing {:.3} s, {:.2} MiB dealt{}. Online {:.3} s, {} rounds, {:.2} MiB sent by each server.</p>\n",
        result::preprocessing_seconds(cost),
        mib(&cost["offline"]["bytes"]["helper"]),
        if cost["overlapped"] == true { ", beside the online phase" } else { "" },
        seconds(&cost["online"]),
        cost["online"]["rounds"],
        mib(&cost["online"]["bytes"]["server0"]),
    );
    let layers = cost["layers"].as_array().into_iter().flatten().map(|layer| {
        vec![
            shown(&layer["name"]),
            shown(&layer["op"]),
            layer["rounds"].to_string(),
            format!("{:.3}", mib(&layer["bytes"])),
            format!("{:.2}", seconds(layer) * 1e3),
        ]
    });
    page += &table(&["layer", "op", "rounds", "MiB", "ms"], layers);
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
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        let json = serde_json::json!({
            "model": "<script>\u{202e}\u{1b}", "image": "a\"b&c",
            "result": { "boxes": [[1, 2, 3, 4]], "labels": [1], "scores": [0.5], "classes": ["<b>"], "settled": false },
            "max_abs_error": 0.25,
        });
        let page = html(&json, "boxes.png", None);
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&lt;b&gt;") && page.contains("a&quot;b&amp;c")
        );
        assert!(!page.contains(['\u{202e}', '\u{1b}']));
        assert!(!page.contains("<script") && page.contains("--nms-steps") && page.contains("<td>0.500</td>"));
        assert!(
            !page.contains("server0")
                && html(&json, "b", Some("server0-view.png")).contains("server0-view.png")
        );
    }
}
