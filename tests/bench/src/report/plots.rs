//! `report.svg`: bars for what there is one of, lines for what grows with the number of streams.

use std::path::Path;

use plotters::{coord::Shift, prelude::*};
use testkit::{Failure, OrFail};

use super::{Figure, Report};

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (1200, 1350);
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(120, 120, 120), RGBColor(0, 158, 115)];

/// Draws what was measured; a part that was not measured leaves its place empty.
pub(super) fn draw(report: &Report, path: &Path) -> Result<(), Failure> {
    draw_all(report, path).or_fail(format!("draw {}", path.display()))
}

fn draw_all(report: &Report, path: &Path) -> Drawn {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((3, 2));
    bars(
        report,
        &areas[0],
        "exec to the first `default`, ms",
        &["start.warm.first_default", "start.cold.first_default"],
    )?;
    lines(report, &areas[1], "resident memory, MiB", "resident")?;
    lines(report, &areas[2], "the CA's answer to the last stream, ms", "rotation.last")?;
    lines(report, &areas[3], "CPU time of a rotation, ms", "rotation.cpu")?;
    bars(report, &areas[4], "99th percentile at a fixed rate, ms", &["load.fixed.p99"])?;
    bars(report, &areas[5], "requests a second, saturated", &["load.saturated.rate"])?;
    root.present()?;
    Ok(())
}

/// A bar for each result of each figure, from zero to the median, with a line from minimum to maximum.
fn bars(report: &Report, area: &Canvas<'_>, title: &str, ids: &[&str]) -> Drawn {
    let figures: Vec<&Figure> = ids.iter().filter_map(|id| report.figure(id)).collect();
    let mut bars = Vec::new();
    for figure in &figures {
        let kind = figure.id.split('.').nth(1).filter(|_| figures.len() > 1).unwrap_or_default();
        bars.extend(figure.results.iter().map(|(of, summary)| (of, format!("{of} {kind}"), summary)));
    }
    let top = bars.iter().map(|(_, _, summary)| summary.maximum).fold(0.0, f64::max);
    if bars.is_empty() || top <= 0.0 {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area);
    chart.caption(title, ("sans-serif", 18)).margin(15).x_label_area_size(30).y_label_area_size(60);
    let mut chart = chart.build_cartesian_2d(0.0..bars.len() as f64, 0.0..top * 1.1)?;
    let label = |at: &f64| bars.get(*at as usize).map_or(String::new(), |(_, label, _)| label.clone());
    let labels = move |at: &f64| if (at.fract() - 0.5).abs() < 0.01 { label(at) } else { String::new() };
    chart.configure_mesh().disable_x_mesh().x_labels(bars.len() * 2 + 1).x_label_formatter(&labels).draw()?;
    for (at, (of, _, summary)) in bars.iter().enumerate() {
        let (at, colour) = (at as f64, colour(&figures, of));
        chart.draw_series([Rectangle::new([(at + 0.2, 0.0), (at + 0.8, summary.median)], colour.filled())])?;
        let middle = at + 0.5;
        chart.draw_series([PathElement::new([(middle, summary.minimum), (middle, summary.maximum)], BLACK)])?;
    }
    Ok(())
}

/// A line for each column over the numbers of streams, both axes logarithmic.
fn lines(report: &Report, area: &Canvas<'_>, title: &str, part: &str) -> Drawn {
    let points: Vec<(f64, &Figure)> = report
        .sections
        .iter()
        .flat_map(|section| &section.figures)
        .filter_map(|figure| {
            let streams = figure.id.strip_prefix("streams.")?.strip_suffix(part)?.strip_suffix('.')?;
            Some((streams.parse().ok().filter(|streams| *streams > 0.0)?, figure))
        })
        .collect();
    let values = || points.iter().flat_map(|(_, figure)| figure.results.iter().map(|(_, summary)| summary.median));
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let (Some((first, figure)), Some((last, _))) = (points.first(), points.last()) else { return Ok(()) };
    if least <= 0.0 || first >= last {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area);
    chart.caption(title, ("sans-serif", 18)).margin(15).x_label_area_size(40).y_label_area_size(60);
    let (across, up) = ((*first..*last).log_scale(), (least / 1.5..most * 1.5).log_scale());
    let mut chart = chart.build_cartesian_2d(across, up)?;
    chart.configure_mesh().x_desc("streams").draw()?;
    for (of, _) in &figure.results {
        let colour = colour(&[figure], of);
        let line = points.iter().filter_map(|(streams, figure)| {
            let (_, summary) = figure.results.iter().find(|(named, _)| named == of)?;
            Some((*streams, summary.median))
        });
        let drawn = chart.draw_series(LineSeries::new(line, colour.stroke_width(2)).point_size(3))?;
        drawn.label(of).legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour.stroke_width(2)));
    }
    let labels = &mut chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperLeft).border_style(BLACK).background_style(WHITE).draw()?;
    Ok(())
}

fn colour(figures: &[&Figure], of: &str) -> RGBColor {
    let place = figures.iter().find_map(|figure| figure.results.iter().position(|(named, _)| named == of));
    COLOURS[place.unwrap_or_default() % COLOURS.len()]
}
