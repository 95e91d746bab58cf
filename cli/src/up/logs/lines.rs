//! Cuts a stream of bytes into lines.

/// The longest line that is kept; bytes beyond it are counted.
const MAX_BYTES: usize = 8 * 1024;

/// Cuts a stream of bytes into lines, each bounded.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    partial: Vec<u8>,
    /// Bytes of the current line past the bound.
    cut: usize,
}

impl LineSplitter {
    /// The lines that end in these bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.append(&bytes[..end]);
            lines.push(self.take());
            bytes = &bytes[end + 1..];
        }
        self.append(bytes);
        lines
    }

    /// The part that has come of a line that has not ended.
    pub(super) fn take_partial(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = MAX_BYTES - self.partial.len();
        let kept = bytes.len().min(room);
        self.partial.extend_from_slice(&bytes[..kept]);
        self.cut += bytes.len() - kept;
    }

    fn take(&mut self) -> String {
        let bytes = self.partial.strip_suffix(b"\r").unwrap_or(&self.partial);
        let mut line = String::from_utf8_lossy(bytes).into_owned();
        if self.cut > 0 {
            line.push_str(&format!(" … and {} bytes more", self.cut));
        }
        self.partial.clear();
        self.cut = 0;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_the_bytes_are_split() {
        let text = b"one\r\n\ntwo \xff\nthree";
        for chunk in 1..text.len() {
            let mut lines = LineSplitter::default();
            let mut told: Vec<String> = text.chunks(chunk).flat_map(|bytes| lines.push(bytes)).collect();
            told.extend(lines.take_partial());
            assert_eq!(told, ["one", "", "two \u{fffd}", "three"], "chunks of {chunk}");
            assert_eq!(lines.take_partial(), None);
        }
    }

    #[test]
    fn a_line_without_end_keeps_to_its_bound() {
        let mut lines = LineSplitter::default();
        for _ in 0..1_000 {
            assert!(lines.push(&[b'x'; 1_000]).is_empty());
            assert!(lines.partial.capacity() <= 2 * MAX_BYTES);
        }
        let [line] = &lines.push(b"\nnext")[..] else { panic!("one line") };
        assert!(line.ends_with(" … and 991808 bytes more"), "{}", &line[line.len() - 40..]);
        assert_eq!(lines.take_partial().as_deref(), Some("next"));
    }
}
