//! The tables of the manual's page, read back.

use std::fmt::Write as _;

use testkit::Failure;

const OURS: &str = "sds-shim";
const THEIRS: &str = "pilot-agent";

/// The bars of the plot: a title, and the row of a table.
const BARS: [(&str, &str, &str); 3] = [
    ("Start, warm: exec to the first certificate", "first `default`: ECDSA, warm, ms", "ms"),
    (
        "Start, cold: the program's file not in memory",
        "first `default`: ECDSA, the program's file not in memory, ms",
        "ms",
    ),
    ("Resident memory, one stream", "resident, 1 stream, MiB", "MiB"),
];

/// Rows of tables, each with its columns.
pub(super) struct Quoted(Vec<(String, Vec<(String, Cell)>)>);

#[derive(Clone)]
struct Cell {
    median: String,
    /// How many times the median of the first column it is.
    ratio: Option<String>,
}

impl Quoted {
    /// Takes every table of the page whose first column has no title.
    pub(super) fn read(page: &str) -> Self {
        let mut rows = Vec::new();
        let mut columns: Vec<String> = Vec::new();
        for line in page.lines() {
            let Some(line) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
                if !line.starts_with("|---") {
                    columns.clear();
                }
                continue;
            };
            let mut cells = line.split(" | ").map(str::trim);
            let first = cells.next().unwrap_or_default();
            if let Some(title) = first.strip_prefix("| ") {
                columns = std::iter::once(title).chain(cells).map(str::to_owned).collect();
            } else if !columns.is_empty() {
                let cells = cells.map(Cell::read);
                rows.push((first.to_owned(), columns.iter().cloned().zip(cells).collect()));
            }
        }
        Self(rows)
    }

    /// The README's lines.
    pub(super) fn lines(&self) -> Result<String, Failure> {
        let start = "first `default`: ECDSA, warm, ms";
        let defaults = "first `default`: defaults, warm: ECDSA; the agent's RSA 2048 and look-up of a cloud, ms";
        let (resident, mapped) = ("resident, 1 stream, MiB", "mapped, 1 stream, MiB");
        let one = "the CA's answer to the last stream, 1 stream, ms";
        let many = "the CA's answer to the last stream, 1000 streams, ms";
        let ours = |row| self.cell(row, OURS).map(|cell| cell.median);
        let times = |row| self.ratio(row);
        let mut text = String::new();
        let _ = writeln!(
            text,
            "- **Start**, from `exec` to the first certificate: {} ms (Istio's agent: × {} with the same ECDSA keys, × {} \
             with each one's defaults).",
            ours(start)?,
            times(start)?,
            times(defaults)?
        );
        let _ = writeln!(
            text,
            "- **Memory** with one stream: {} MiB resident, {} MiB mapped (agent: × {} and × {}).",
            ours(resident)?,
            ours(mapped)?,
            times(resident)?,
            times(mapped)?
        );
        let _ = writeln!(
            text,
            "- **Rotation**, from the CA's answer to the last stream: {} ms with one stream, {} ms with 1,000 (agent: × {} \
             and × {}).",
            ours(one)?,
            ours(many)?,
            times(one)?,
            times(many)?
        );
        Ok(text)
    }

    /// Start and memory beside the agent, as SVG.
    pub(super) fn plot(&self) -> Result<String, Failure> {
        const WIDTH: f64 = 440.0;
        let height = 78 * BARS.len() + 14;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 {height}\" width=\"640\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"640\" height=\"{height}\" rx=\"6\" \
             fill=\"#ffffff\"/>\n"
        );
        for (at, (title, row, unit)) in BARS.into_iter().enumerate() {
            let top = 26 + 78 * at;
            let _ = writeln!(svg, "<text x=\"16\" y=\"{top}\" font-weight=\"bold\" fill=\"#222222\">{title}</text>");
            let most = self.number(row, OURS)?.max(self.number(row, THEIRS)?);
            for (line, (who, name, colour)) in
                [(OURS, "sds-shim", "#0072b2"), (THEIRS, "Istio's agent", "#d55e00")].into_iter().enumerate()
            {
                let (y, width) = (top + 8 + 24 * line, (self.number(row, who)? / most * WIDTH).round());
                let (base, end) = (y + 15, 112.0 + width + 6.0);
                let median = self.cell(row, who)?.median;
                let _ = writeln!(
                    svg,
                    "<text x=\"16\" y=\"{base}\" fill=\"#222222\">{name}</text><rect x=\"112\" y=\"{y}\" width=\"{width}\" \
                     height=\"20\" fill=\"{colour}\"/><text x=\"{end}\" y=\"{base}\" fill=\"#222222\">{median} {unit}</text>"
                );
            }
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    fn number(&self, row: &str, column: &str) -> Result<f64, Failure> {
        let cell = self.cell(row, column)?;
        let number = cell.median.replace(',', "").parse();
        number.map_err(|_| Failure::new(format!("{row}: {column}: {:?} is no number", cell.median)))
    }

    fn ratio(&self, row: &str) -> Result<String, Failure> {
        let cell = self.cell(row, THEIRS)?;
        cell.ratio.ok_or_else(|| Failure::new(format!("{row}: {THEIRS} has no ratio")))
    }

    fn cell(&self, row: &str, column: &str) -> Result<Cell, Failure> {
        let cells = self.0.iter().find(|(what, _)| what == row).map(|(_, cells)| cells);
        let found = cells.and_then(|cells| cells.iter().find(|(of, _)| of == column));
        found.map(|(_, cell)| cell.clone()).ok_or_else(|| Failure::new(format!("the page has no {row:?} of {column}")))
    }
}

impl Cell {
    /// `minimum / median / maximum (runs), × ratio`, or the median alone.
    fn read(text: &str) -> Self {
        let (measured, ratio) = match text.split_once(", × ") {
            Some((measured, ratio)) => (measured, Some(ratio.to_owned())),
            None => (text, None),
        };
        let median = measured.split(" / ").nth(1).unwrap_or(measured);
        Self { median: median.to_owned(), ratio }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_back() {
        let page = "| | sds-shim | pilot-agent |\n|---|---|---|\n| x, ms | 1.00 / 2.00 / 3.00 (9) | 1,700, × 850 |\n\n| y, ms | 1 | 2 |\n";
        let quoted = Quoted::read(page);
        assert_eq!(quoted.number("x, ms", OURS).unwrap(), 2.0);
        assert_eq!(quoted.number("x, ms", THEIRS).unwrap(), 1700.0);
        assert_eq!(quoted.ratio("x, ms").unwrap(), "850");
        assert!(quoted.number("y, ms", OURS).is_err(), "it is in no table");
    }
}
