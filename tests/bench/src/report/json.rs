//! `report.json`, for programs:
//!
//! ```json
//! {
//!   "schema": 1,
//!   "quick": false,
//!   "figures": [
//!     {
//!       "id": "start.warm.first_default",
//!       "section": "start",
//!       "what": "first `default`: ECDSA, warm",
//!       "unit": "ms",
//!       "results": {
//!         "sds-shim": { "minimum": 5.1, "median": 5.4, "maximum": 7.9, "runs": 100 },
//!         "pilot-agent": { "minimum": 33.0, "median": 34.2, "maximum": 41.7, "runs": 100, "ratio": 6.3 }
//!       }
//!     }
//!   ],
//!   "remarks": ["what could not be measured, and why"]
//! }
//! ```
//!
//! `ratio` is how many times the median of `sds-shim` (of "SDS" in the section `load`) this median is; it is left out
//! where that is zero. Names of figures, results and units do not change within a schema; new ones may come.

use serde_json::{Map, Value, json};

use super::{Figure, Report};

pub(super) fn render(report: &Report) -> String {
    let mut figures = Vec::new();
    for section in &report.sections {
        for figure in &section.figures {
            figures.push(json!({
                "id": figure.id,
                "section": section.id,
                "what": figure.what,
                "unit": figure.unit,
                "results": results(figure),
            }));
        }
    }
    let remarks: Vec<_> = report.sections.iter().flat_map(|section| &section.remarks).collect();
    let report = json!({ "schema": 1, "quick": report.quick, "figures": figures, "remarks": remarks });
    format!("{report:#}\n")
}

fn results(figure: &Figure) -> Map<String, Value> {
    let results = figure.results.iter().enumerate().map(|(place, (of, summary))| {
        let mut result = json!({
            "minimum": summary.minimum,
            "median": summary.median,
            "maximum": summary.maximum,
            "runs": summary.runs,
        });
        if let Some(ratio) = figure.ratio(place) {
            result["ratio"] = json!(ratio);
        }
        (of.clone(), result)
    });
    results.collect()
}
