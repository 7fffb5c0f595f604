use std::collections::HashMap;

use super::{Needles, Range};

const PAGE: usize = 4096;
/// What reaches into the next page is looked at as well.
const OVERLAP: usize = 64;

/// All that a series of images held: each content of each page once, so that a hundred images can be searched.
#[derive(Default)]
pub struct Pages {
    latest: HashMap<u64, usize>,
    contents: Vec<Content>,
}

struct Content {
    bytes: Vec<u8>,
    first: usize,
    last: usize,
}

/// Windows of a key in one content of one page.
#[derive(Debug)]
pub struct Hit {
    /// The key.
    pub key: usize,
    /// The first image that held them.
    pub first: usize,
    /// The last one.
    pub last: usize,
}

impl Pages {
    /// Adds what image number `image` holds; images come in order.
    pub fn add<'a>(&mut self, image: usize, ranges: impl IntoIterator<Item = &'a Range>) {
        for range in ranges {
            for at in (0..range.bytes.len()).step_by(PAGE) {
                let bytes = &range.bytes[at..range.bytes.len().min(at + PAGE + OVERLAP)];
                self.page(image, range.start + at as u64, bytes);
            }
        }
    }

    fn page(&mut self, image: usize, address: u64, bytes: &[u8]) {
        if let Some(content) = self.latest.get(&address).map(|latest| &mut self.contents[*latest])
            && content.bytes == bytes
        {
            content.last = image;
            return;
        }
        self.latest.insert(address, self.contents.len());
        self.contents.push(Content { bytes: bytes.to_owned(), first: image, last: image });
    }

    /// How many bytes there are to search.
    pub fn bytes(&self) -> usize {
        self.contents.iter().map(|content| content.bytes.len()).sum()
    }

    /// Every key in every content.
    pub fn search(&self, needles: &Needles) -> Vec<Hit> {
        let mut hits = Vec::new();
        for content in &self.contents {
            let mut found = HashMap::new();
            needles.count(&content.bytes, &mut found);
            hits.extend(found.into_keys().map(|key| Hit { key, first: content.first, last: content.last }));
        }
        hits
    }
}
