//! What the repository quotes of a report: its tables in the manual, and the lines and the plot in the README, which are
//! made from these tables, so that they cannot differ.

mod quoted;

use std::fs;

use testkit::{Failure, OrFail, workspace};

use self::quoted::Quoted;
use super::{Figure, Report, table};

const README: &str = "README.md";
const PAGE: &str = "src/manual/evidence/benchmarks.md";
const PLOT: &str = "src/manual/evidence/benchmarks.svg";
const BEGIN: &str = "<!-- measured by `make bench` -->\n";
const END: &str = "<!-- end of what was measured -->\n";

/// What `report.md` has besides: parts of the names of figures.
const LEFT_OUT: [&str; 6] =
    [".proportional", ".spread", "cold.accepts", "rsa.accepts", "default.accepts", "cloud.accepts"];

/// Puts this report into the repository, in the place of an earlier one.
pub(super) fn update(report: &Report) -> Result<(), Failure> {
    let mut tables = String::new();
    for section in &report.sections {
        tables += &format!("**{}**\n\n", section.title);
        let quoted = |figure: &&Figure| !LEFT_OUT.iter().any(|part| figure.id.contains(part));
        table::table(&section.figures.iter().filter(quoted).collect::<Vec<_>>(), &mut tables);
    }
    let page = with(PAGE, &tables)?;
    let quoted = Quoted::read(&page);
    let (readme, plot) = (with(README, &quoted.lines()?)?, quoted.plot()?);
    for (file, text) in [(PAGE, page), (README, readme), (PLOT, plot)] {
        fs::write(workspace().join(file), text).or_fail(format!("write {file}"))?;
    }
    Ok(())
}

/// The file with this between its marks.
fn with(file: &str, measured: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(workspace().join(file)).or_fail(format!("read {file}"))?;
    let (before, _, after) = split(&text).ok_or_else(|| Failure::new(format!("{file} lacks {BEGIN:?} or {END:?}")))?;
    Ok(format!("{before}{BEGIN}{measured}{END}{after}"))
}

/// What lies before, between and after the marks.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (between, after) = rest.split_once(END)?;
    Some((before, between, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str) -> String {
        fs::read_to_string(workspace().join(file)).unwrap()
    }

    #[test]
    fn the_page_quotes_every_part_in_tables() {
        let text = read(PAGE);
        let (_, quoted, _) = split(&text).unwrap();
        let mut columns = 0;
        for line in quoted.lines() {
            match line.matches(" | ").count() {
                _ if line.is_empty() || line.starts_with("**") => columns = 0,
                _ if line.starts_with("|---|") => assert_eq!(line.matches("---|").count(), columns + 1, "{line}"),
                now if columns == 0 => columns = now,
                now => assert!(now == columns && line.starts_with("| ") && line.ends_with(" |"), "{line}"),
            }
        }
        for figure in [
            "first `default`: ECDSA, warm, ms",
            "resident, 100 streams, MiB",
            "the CA's answer to the last stream, 10000 streams, ms",
            "context switches, number",
            "a rotation, million",
            "binary, MiB",
            "fixed rate: 99th percentile, ms",
        ] {
            let row = quoted.lines().find(|line| line.starts_with(&format!("| {figure} |")));
            assert!(row.is_some_and(|row| row.contains(|digit: char| digit.is_ascii_digit())), "{figure}: {row:?}");
        }
    }

    #[test]
    fn the_readme_and_its_plot_say_what_the_page_says() {
        let quoted = Quoted::read(&read(PAGE));
        let readme = read(README);
        let (_, lines, _) = split(&readme).unwrap();
        assert_eq!(lines, quoted.lines().unwrap());
        assert!(readme.contains(PLOT), "the plot is not shown");
        let plot = quoted.plot().unwrap();
        assert!(read(PLOT) == plot, "{PLOT} should be:\n{plot}");
    }
}
