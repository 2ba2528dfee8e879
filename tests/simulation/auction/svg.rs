//! As much of SVG as a report needs.

use std::fmt::Write;

#[derive(Default)]
pub struct Svg(String);

impl Svg {
    /// In `fill`, whole or in halves of a unit: what is drawn is small, and the file shall be.
    pub fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let [x, y, width, height] = [x, y, width, height].map(short);
        let _ =
            writeln!(self.0, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>"#);
    }

    /// `y` is that of the line the text stands on.
    pub fn text(&mut self, (x, y): (f64, f64), size: u32, text: &str) {
        let (x, y, text) = (short(x), short(y), escaped(text));
        let _ = writeln!(self.0, r#"<text x="{x}" y="{y}" font-size="{size}">{text}</text>"#);
    }

    /// Upright lines, each from one height to another.
    pub fn uprights(&mut self, lines: &[(f64, f64, f64)], width: f64, stroke: &str) {
        if lines.is_empty() {
            return;
        }
        let mut path = String::new();
        for (x, from, to) in lines {
            let _ = write!(path, "M{} {}V{}", short(*x), short(*from), short(*to));
        }
        let width = short(width);
        let _ = writeln!(self.0, r#"<path d="{path}" stroke="{stroke}" stroke-width="{width}"/>"#);
    }

    pub fn group(&mut self, (x, y): (f64, f64), inner: &Svg) {
        let _ = writeln!(self.0, "<g transform=\"translate({},{})\">\n{}</g>", short(x), short(y), inner.0);
    }

    pub fn document(&self, width: f64, height: f64) -> String {
        let (width, height) = (short(width), short(height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" fill=\"#333\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
             {}</svg>\n",
            self.0
        )
    }
}

fn short(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_texts_harmless() {
        assert_eq!([short(1.0), short(0.256), short(-2.5), short(10.0)], ["1", "0.26", "-2.5", "10"]);
        let mut svg = Svg::default();
        svg.text((0.0, 0.0), 9, "a<b & c");
        svg.uprights(&[(1.0, 9.0, 2.0)], 1.0, "#000");
        let document = svg.document(10.0, 10.0);
        assert!(document.contains("a&lt;b &amp; c") && document.contains("M1 9V2"), "{document}");
    }
}
