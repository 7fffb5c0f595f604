//! The tables that README.md quotes, between two marks.

use std::fs;

use testkit::{Failure, OrFail, workspace};

use super::{Figure, Report, table};

const BEGIN: &str = "<!-- measured by `make bench` -->\n";
const END: &str = "<!-- end of what was measured -->\n";

/// What `report.md` has besides: parts of the names of figures.
const LEFT_OUT: [&str; 6] =
    [".proportional", ".spread", "cold.accepts", "rsa.accepts", "default.accepts", "cloud.accepts"];

/// Puts this report's tables into README.md, in the place of those of an earlier one.
pub(super) fn update(report: &Report) -> Result<(), Failure> {
    let path = workspace().join("README.md");
    let text = fs::read_to_string(&path).or_fail("read README.md")?;
    let missing = || Failure::new(format!("README.md has no place between {BEGIN:?} and {END:?}"));
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    let mut tables = String::new();
    for section in &report.sections {
        tables += &format!("**{}**\n\n", section.title);
        let quoted = |figure: &&Figure| !LEFT_OUT.iter().any(|part| figure.id.contains(part));
        table::table(&section.figures.iter().filter(quoted).collect::<Vec<_>>(), &mut tables);
    }
    fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}")).or_fail("write README.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_quotes_every_part_in_tables() {
        let text = fs::read_to_string(workspace().join("README.md")).unwrap();
        let quoted = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).unwrap().0;
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
}
