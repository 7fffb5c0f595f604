//! The text format that Prometheus had before OpenMetrics.

use std::{collections::BTreeMap, fmt::Write as _};

/// What it calls itself.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether who asks accepts plain text and not OpenMetrics, which Prometheus prefers.
pub(super) fn is_wanted(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| accept.contains("text/plain") && !accept.contains("application/openmetrics-text"))
}

/// OpenMetrics in the older format, in which counters and information have the names of their samples, and there are
/// neither units nor an end.
pub(super) fn of(openmetrics: &str) -> String {
    let types = openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let suffix = |(name, kind): (_, &str)| match kind {
        "counter" => Some((name, ("_total", "counter"))),
        "info" => Some((name, ("_info", "gauge"))),
        "unknown" => Some((name, ("", "untyped"))),
        _ => None,
    };
    let other: BTreeMap<_, _> = types.filter_map(suffix).collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let described = line.strip_prefix("# ").and_then(|line| line.split_once(' '));
        let described = described.and_then(|(what, rest)| Some((what, rest.split_once(' ')?)));
        let known = described.and_then(|(what, (name, rest))| Some((what, name, rest, other.get(name)?)));
        let _ = match known {
            Some(("TYPE", name, _, (suffix, kind))) => writeln!(text, "# TYPE {name}{suffix} {kind}"),
            Some((what, name, rest, (suffix, _))) => writeln!(text, "# {what} {name}{suffix} {rest}"),
            None => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_turned_into_the_older_format() {
        let openmetrics = "# HELP a How often: it counts.\n# TYPE a counter\na_total{x=\"# TYPE a counter\"} 1\n\
            # HELP b_seconds A time.\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2.0\n\
            # HELP c What.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let expected = "# HELP a_total How often: it counts.\n# TYPE a_total counter\na_total{x=\"# TYPE a counter\"} 1\n\
            # HELP b_seconds A time.\n# TYPE b_seconds gauge\nb_seconds 2.0\n\
            # HELP c_info What.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(of(openmetrics), expected);
    }

    #[test]
    fn the_older_format_is_served_on_request() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, expected) in [
            (None, false),
            (Some("*/*"), false),
            (Some(prometheus), false),
            (Some("text/plain"), true),
            (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), true),
        ] {
            assert_eq!(is_wanted(accept), expected, "{accept:?}");
        }
    }
}
