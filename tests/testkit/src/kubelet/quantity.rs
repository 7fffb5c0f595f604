//! Amounts in Kubernetes' words.

use crate::Failure;

/// Bytes, as in `16Mi`.
pub(super) fn bytes(text: &str) -> Result<u64, Failure> {
    const UNITS: [(&str, u64); 7] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("", 1),
    ];
    let found = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)));
    let amount = found.and_then(|(number, size)| number.parse::<u64>().ok()?.checked_mul(*size));
    amount.ok_or_else(|| Failure::new(format!("{text:?} is not a number of bytes")))
}

/// Thousandths of a CPU, as in `250m` or `0.5`.
pub(super) fn milli_cpus(text: &str) -> Result<u64, Failure> {
    let amount = match text.strip_suffix('m') {
        Some(thousandths) => thousandths.parse().ok(),
        None => text.parse::<f64>().ok().filter(|cpus| (0.0..1024.0).contains(cpus)).map(|cpus| (cpus * 1000.0) as u64),
    };
    amount.ok_or_else(|| Failure::new(format!("{text:?} is not a number of CPUs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_parsed_like_kubernetes() {
        for (text, expected) in [("16Mi", 16 << 20), ("1Gi", 1 << 30), ("64k", 64_000), ("8388608", 8 << 20)] {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for (text, expected) in [("250m", 250), ("0.5", 500), ("2", 2000)] {
            assert_eq!(milli_cpus(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", "Mi", "1.5Mi", "-1", "99999999999Gi", "4Qi"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(milli_cpus("-1").is_err() && milli_cpus("m").is_err());
    }
}
