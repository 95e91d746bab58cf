//! What waits to be written.

/// Buffers above this are given back while idle.
const KEPT_BYTES: usize = 4 << 10;

/// The bytes that the driver writes once a turn.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    start: usize,
    /// All that was ever written.
    written: u64,
    /// Unsent answers that the peer provoked: of those that were appended before `mark`, and after it. The older ones
    /// are forgotten as a whole once everything up to `mark` was written, which needs no list of where they are.
    provoked_before: usize,
    provoked_after: usize,
    mark: u64,
}

impl Output {
    #[inline]
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// So much of what was just appended is an answer that the peer provoked. Returns how much of such is unsent.
    pub(super) fn provoke(&mut self, bytes: usize) -> usize {
        self.provoked_after += bytes;
        self.provoked_before + self.provoked_after
    }

    #[inline]
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.start += bytes.min(self.len());
        self.written += bytes as u64;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            self.provoked_before = 0;
            self.provoked_after = 0;
            self.mark = self.written;
            return;
        }
        if self.written >= self.mark {
            self.provoked_before = std::mem::take(&mut self.provoked_after);
            self.mark = self.written + self.len() as u64;
        }
        if self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    pub(super) fn shrink(&mut self) {
        if self.len() == 0 {
            self.bytes.shrink_to(KEPT_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provoked_answers_count_until_they_are_written_and_not_for_ever() {
        let mut output = Output::default();
        for _ in 0..1000 {
            output.bytes.extend_from_slice(&[0; 100]);
            assert!(output.provoke(10) <= 70, "what was written long ago does not count");
            output.wrote(if output.len() > 200 { 100 } else { 90 });
        }
        let unsent = output.len();
        output.wrote(unsent);
        assert_eq!((output.len(), output.provoke(1)), (0, 1));
    }
}
