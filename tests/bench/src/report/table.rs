//! `report.md`, for people: a table for each section.

use std::fmt::Write as _;

use super::{Figure, Report};

/// What every table is read by.
const LEGEND: &str = "Each cell: minimum / median / maximum (number of runs), and how many times the median of the \
                      first column the median is.";

pub(super) fn render(report: &Report) -> String {
    let mut out = String::from("# Measured\n\n");
    if report.quick {
        out.push_str("A quick run: it shows that everything can be measured, its figures are rough.\n\n");
    }
    let _ = writeln!(out, "{LEGEND}\n");
    for section in &report.sections {
        let _ = writeln!(out, "## {}\n\n{}\n", section.title, section.method);
        table(&section.figures.iter().collect::<Vec<_>>(), &mut out);
        for remark in &section.remarks {
            let _ = writeln!(out, "{remark}\n");
        }
    }
    out
}

/// Figures, a row each, with a column for everybody who was measured.
pub(super) fn table(figures: &[&Figure], out: &mut String) {
    let mut columns: Vec<&str> = Vec::new();
    for (of, _) in figures.iter().flat_map(|figure| &figure.results) {
        if !columns.contains(&of.as_str()) {
            columns.push(of);
        }
    }
    if columns.is_empty() {
        return;
    }
    let _ = writeln!(out, "| | {} |\n|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
    for figure in figures {
        let cells: Vec<_> = columns.iter().map(|of| cell(figure, of)).collect();
        let _ = writeln!(out, "| {}, {} | {} |", figure.what, figure.unit, cells.join(" | "));
    }
    out.push('\n');
}

fn cell(figure: &Figure, of: &str) -> String {
    let Some(place) = figure.results.iter().position(|(named, _)| named == of) else { return String::new() };
    let summary = figure.results[place].1;
    let mut cell = number(summary.median);
    if summary.runs > 1 {
        cell = format!("{} / {cell} / {} ({})", number(summary.minimum), number(summary.maximum), summary.runs);
    }
    if let Some(ratio) = figure.ratio(place) {
        let _ = write!(cell, ", × {}", number(ratio));
    }
    cell
}

/// Three digits that count, and thousands set apart.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 0.1 => 3,
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut apart = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && digit.is_ascii_digit() && !apart.ends_with('-') {
            apart.push(',');
        }
        apart.push(digit);
    }
    rest.map_or(apart.clone(), |rest| format!("{apart}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{report::Section, summary::Summary};

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown = [0.0, 0.0123, 1.0, 5.678, 56.78, 567.8, 1_234_567.0].map(number);
        assert_eq!(shown, ["0", "0.012", "1.00", "5.68", "56.8", "568", "1,234,567"]);
    }

    #[test]
    fn a_row_has_every_column_and_the_ratio_to_the_first() {
        let mut section = Section::new("s", "title", "method");
        let mut figure = |id: &str, of: &str, values: &[f64]| {
            section.add(|| Figure::new(id, format!("the {id}"), "ms"), of, values);
        };
        figure("one", "ours", &[1.0, 2.0, 3.0]);
        figure("one", "theirs", &[5.0]);
        figure("two", "ours", &[0.0]);
        figure("two", "theirs", &[7.0]);
        assert_eq!(section.figures[0].results[0].1, Summary { minimum: 1.0, median: 2.0, maximum: 3.0, runs: 3 });
        let mut out = String::new();
        table(&section.figures.iter().collect::<Vec<_>>(), &mut out);
        let rows: Vec<_> = out.lines().collect();
        assert_eq!(rows[0], "| | ours | theirs |");
        assert_eq!(rows[2], "| the one, ms | 1.00 / 2.00 / 3.00 (3) | 5.00, × 2.50 |");
        assert_eq!(rows[3], "| the two, ms | 0 | 7.00 |");
    }
}
