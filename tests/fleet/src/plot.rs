//! Plots of the CA's calls over time, as SVG.

use std::{ops::Range, path::Path};

use plotters::prelude::*;
use testkit::{Failure, OrFail};

/// Ours and the reference, to be told apart also without colours: one is filled.
const OURS: RGBColor = RGBColor(0, 114, 178);
const THEIRS: RGBColor = RGBColor(213, 94, 0);
const GREY: RGBColor = RGBColor(150, 150, 150);

/// A curve with its name: calls a second.
pub struct Curve<'a> {
    /// In the legend.
    pub name: &'a str,
    /// Seconds and calls a second.
    pub points: Vec<(f64, f64)>,
}

/// Calls a second in bins, over a span of seconds, from its beginning on.
pub fn binned(calls: &[u32], span: Range<usize>, bin: usize, share: f64) -> Vec<(f64, f64)> {
    let rate = |(index, calls): (usize, &[u32])| {
        let sum: f64 = calls.iter().map(|calls| f64::from(*calls)).sum();
        ((index * bin) as f64, share * sum / calls.len() as f64)
    };
    calls[span.start.min(calls.len())..span.end.min(calls.len())].chunks(bin).enumerate().map(rate).collect()
}

/// Draws two curves on a logarithmic scale, with a line at `limit` where there is one.
pub fn draw(file: &Path, title: &str, curves: [Curve<'_>; 2], limit: Option<(f64, &str)>) -> Result<(), Failure> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let width = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let highest = points().map(|(_, rate)| *rate).chain(limit.map(|(limit, _)| limit)).fold(1.0, f64::max);
    // What is nothing has no place on a logarithmic scale.
    let lowest = points().map(|(_, rate)| *rate).filter(|rate| *rate > 0.0).fold(highest, f64::min).max(highest / 1e6);
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(file, (960, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..width / 60.0, (lowest / 2.0..highest * 2.0).log_scale())?;
        chart.configure_mesh().light_line_style(WHITE).x_desc("minutes").y_desc("CA calls a second").draw()?;
        for (curve, colour) in curves.iter().zip([OURS, THEIRS]) {
            let points = curve.points.iter().map(|(at, rate)| (at / 60.0, rate.max(lowest / 2.0)));
            let style = colour.stroke_width(2);
            let series = chart.draw_series(LineSeries::new(points, style))?;
            series.label(curve.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        if let Some((limit, name)) = limit {
            let series = chart.draw_series(LineSeries::new([(0.0, limit), (width / 60.0, limit)], GREY))?;
            series.label(name).legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GREY));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(GREY).draw()?;
        root.present()?;
        Ok(())
    };
    drawn().or_fail(format!("draw {}", file.display()))
}
