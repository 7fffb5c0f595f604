use super::{
    super::pem::{self, PemError},
    Candidate,
};

/// Certificates in a text that comes in portions.
#[derive(Default)]
pub(super) struct Blocks {
    text: Vec<u8>,
    state: State,
    position: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Between,
    Inside,
    /// Of one that is too large.
    Skipping,
}

impl Blocks {
    /// Takes the next portion.
    pub(super) fn feed(&mut self, portion: &[u8]) {
        self.text.extend_from_slice(portion);
    }

    /// The next certificate in what has come.
    pub(super) fn next(&mut self) -> Option<Result<Candidate, PemError>> {
        let found = self.cut()?;
        self.position += 1;
        let position = self.position;
        Some(match found {
            Cut::Block(text) => pem::block(&text, position).map(Candidate::new),
            Cut::Off => Err(PemError::Malformed { position }),
            Cut::TooLarge => Err(PemError::TooLarge { position }),
        })
    }

    /// What is left when nothing more comes: nothing, or one that is cut off.
    pub(super) fn end(&mut self) -> Option<Result<Candidate, PemError>> {
        self.text = Vec::new();
        let state = std::mem::take(&mut self.state);
        self.position += 1;
        (state != State::Between).then_some(Err(PemError::Malformed { position: self.position }))
    }

    fn cut(&mut self) -> Option<Cut> {
        loop {
            // The dashes that a block begins with are none of its end.
            let (wanted, from) = match self.state {
                State::Between => (pem::BEGIN, 0),
                State::Inside => (pem::END, pem::BEGIN.len()),
                State::Skipping => (pem::END, 0),
            };
            let Some(at) = find(&self.text[from..], wanted.as_bytes()).map(|at| from + at) else {
                if self.state == State::Inside && self.text.len() > pem::MOST_TEXT {
                    self.state = State::Skipping;
                }
                if self.state != State::Inside {
                    // But for what may be the beginning of what is looked for.
                    self.text.drain(..self.text.len().saturating_sub(wanted.len()));
                }
                return None;
            };
            match self.state {
                State::Between => {
                    self.text.drain(..at);
                    self.state = State::Inside;
                }
                State::Inside => {
                    // One that has begun before this one has ended was cut off.
                    if let Some(again) = find(&self.text[from..at], pem::BEGIN.as_bytes()) {
                        self.text.drain(..from + again);
                        return Some(Cut::Off);
                    }
                    self.state = State::Between;
                    let block: Vec<u8> = self.text.drain(..at + pem::END.len()).collect();
                    return Some(String::from_utf8(block).map_or(Cut::Off, Cut::Block));
                }
                State::Skipping => {
                    self.text.drain(..at + pem::END.len());
                    self.state = State::Between;
                    return Some(Cut::TooLarge);
                }
            }
        }
    }
}

/// What was found between two markers.
enum Cut {
    Block(String),
    /// It has no end, or is no text.
    Off,
    TooLarge,
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, last) = (*wanted.first()?, text.len().checked_sub(wanted.len())?);
    let mut from = 0;
    while from <= last {
        let at = from + text[from..=last].iter().position(|byte| *byte == first)?;
        if text[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_that_share_dashes_are_not_a_block() {
        let text = ["-----BEGIN CERTIFICATE-------END CERTIFICATE-----", pem::BEGIN, "one", pem::END].concat();
        let mut blocks = Blocks::default();
        blocks.feed(text.as_bytes());
        assert!(matches!(blocks.cut(), Some(Cut::Off)));
        assert!(matches!(blocks.cut(), Some(Cut::Block(block)) if block.contains("one")));
        assert!(blocks.cut().is_none() && blocks.end().is_none());
    }

    proptest::proptest! {
        /// Whatever the order of markers and their halves, and the portions in which they come.
        #[test]
        fn nothing_that_looks_like_markers_ends_it(
            parts in proptest::collection::vec(0..9_usize, 0..20), size in 1..40_usize,
        ) {
            let half = |marker: &'static str| [&marker[..marker.len() / 2], &marker[marker.len() / 2..]];
            let ([a, b], [c, d]) = (half(pem::BEGIN), half(pem::END));
            let pieces = [pem::BEGIN, pem::END, a, b, c, d, "--", "A", &pem::END["-----".len()..]];
            let text: String = parts.iter().map(|part| pieces[*part]).collect();
            let mut blocks = Blocks::default();
            for portion in text.as_bytes().chunks(size) {
                blocks.feed(portion);
                while let Some(cut) = blocks.cut() {
                    let good = |block: &str| block.strip_prefix(pem::BEGIN).is_some_and(|rest| rest.ends_with(pem::END));
                    assert!(!matches!(cut, Cut::Block(block) if !good(&block)), "{text}");
                }
            }
            let _ = blocks.end();
        }
    }

    #[test]
    fn blocks_are_found_however_they_come() {
        let block = |content: &str| format!("{}{content}{}", pem::BEGIN, pem::END);
        let large = block(&"A".repeat(pem::MOST_TEXT + 9000));
        let text = [
            "noise ----",
            &block("one"),
            &block("two"),
            "\u{fffd}",
            pem::BEGIN,
            "cut off",
            &block("three"),
            &large,
            &block("four"),
            "-----BEGIN CERTI",
            &block("five"),
            pem::BEGIN,
            "left",
        ]
        .concat();
        for size in [1, 7, 1000, 4096] {
            let (mut blocks, mut found) = (Blocks::default(), Vec::new());
            for portion in text.as_bytes().chunks(size) {
                blocks.feed(portion);
                found.extend(std::iter::from_fn(|| blocks.cut()).map(|cut| match cut {
                    Cut::Block(text) => text.replace(pem::BEGIN, "").replace(pem::END, ""),
                    Cut::Off => "cut off".to_owned(),
                    Cut::TooLarge => "too large".to_owned(),
                }));
            }
            assert_eq!(found, ["one", "two", "cut off", "three", "too large", "four", "five"], "in portions of {size}");
            assert!(matches!(blocks.end(), Some(Err(PemError::Malformed { .. }))));
        }
    }
}
