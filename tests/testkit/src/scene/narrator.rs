/// Prints what has been shown and remembers it.
pub(super) struct Narrator {
    print: fn(&str),
    lines: Vec<String>,
}

impl Narrator {
    pub(super) fn new(print: fn(&str)) -> Self {
        Self { print, lines: Vec::new() }
    }

    pub(super) fn say(&mut self, line: impl Into<String>) {
        let line = line.into();
        (self.print)(&line);
        self.lines.push(line);
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
