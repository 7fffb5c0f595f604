//! The tables that README.md quotes, between two marks.

use std::fs;

use testkit::{Failure, OrFail, workspace};

use super::{Report, table};

const BEGIN: &str = "<!-- measured by `make bench` -->\n";
const END: &str = "<!-- end of what was measured -->\n";

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
        table::table(section, &mut tables);
    }
    fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}")).or_fail("write README.md")
}
