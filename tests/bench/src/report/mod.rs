//! What was measured, and how it is told: `report.json`, `report.md`, `report.svg`, and what the
//! manual and the README quote of it.

mod json;
mod pages;
mod plots;
mod table;

use std::{fs, path::PathBuf};

use testkit::{Failure, OrFail, workspace};

use crate::summary::Summary;

/// Figures that are told in one table.
pub(crate) struct Section {
    /// Its name, with which those of its figures begin.
    pub(crate) id: &'static str,
    title: &'static str,
    /// How it was measured.
    method: &'static str,
    pub(crate) figures: Vec<Figure>,
    /// What could not be measured, and why.
    pub(crate) remarks: Vec<String>,
}

/// One thing that was measured of several.
pub(crate) struct Figure {
    /// A name that does not change from one release to the next.
    pub(crate) id: String,
    what: String,
    unit: &'static str,
    /// Of whom, ours first: what the others are compared with.
    pub(crate) results: Vec<(String, Summary)>,
}

/// Everything.
pub(crate) struct Report {
    pub(crate) quick: bool,
    /// Whether no part was left out. Others must not stand in the place of a whole report.
    pub(crate) whole: bool,
    pub(crate) sections: Vec<Section>,
}

impl Section {
    pub(crate) fn new(id: &'static str, title: &'static str, method: &'static str) -> Self {
        Self { id, title, method, figures: Vec::new(), remarks: Vec::new() }
    }

    /// Adds a result to a figure, which is made when it is not there yet. No values make no result.
    pub(crate) fn add(&mut self, figure: impl Fn() -> Figure, of: &str, values: &[f64]) {
        let Some(summary) = Summary::of(values) else { return };
        let fresh = figure();
        let place = self.figures.iter().position(|known| known.id == fresh.id).unwrap_or_else(|| {
            self.figures.push(fresh);
            self.figures.len() - 1
        });
        self.figures[place].results.push((of.to_owned(), summary));
    }
}

impl Figure {
    pub(crate) fn new(id: impl Into<String>, what: impl Into<String>, unit: &'static str) -> Self {
        Self { id: id.into(), what: what.into(), unit, results: Vec::new() }
    }

    /// How many times the first result's median another one's is; nothing where that is no number.
    fn ratio(&self, place: usize) -> Option<f64> {
        let base = self.results.first()?.1.median;
        (place > 0 && base > 0.0).then(|| self.results[place].1.median / base)
    }
}

impl Report {
    /// The figure of this name.
    fn figure(&self, id: &str) -> Option<&Figure> {
        self.sections.iter().flat_map(|section| &section.figures).find(|figure| figure.id == id)
    }

    /// Writes all forms of it and returns what is printed.
    pub(crate) fn write(&self) -> Result<String, Failure> {
        let directory = directory()?;
        let text = table::render(self);
        let name = if self.whole { "report" } else { "part" };
        let write = |form: &str, text: &str| {
            let path = directory.join(name).with_extension(form);
            fs::write(&path, text).or_fail(format!("write {}", path.display()))
        };
        write("md", &text)?;
        write("json", &json::render(self))?;
        plots::draw(self, &directory.join(name).with_extension("svg"))?;
        if std::env::var_os("BENCH_README").is_some_and(|set| !set.is_empty() && set != "0") {
            pages::update(self)?;
        }
        Ok(text)
    }
}

/// Where reports are written.
pub(crate) fn directory() -> Result<PathBuf, Failure> {
    let directory = workspace().join("target/bench");
    fs::create_dir_all(&directory).or_fail(format!("create {}", directory.display()))?;
    Ok(directory)
}
