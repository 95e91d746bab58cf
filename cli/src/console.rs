//! Prints for people and pipes. A reader may go before all is said, as `head` does. Then what a command does still goes on
//! to its end, and what it says is lost. (`println!` would panic.)

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

/// Prints a line of a result.
///
/// # Errors
/// It can't be written, except if nobody reads it any more.
pub(crate) fn say(text: impl Display) -> io::Result<()> {
    say_to(&mut io::stdout(), text)
}

fn say_to(out: &mut impl Write, text: impl Display) -> io::Result<()> {
    match writeln!(out, "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

/// Prints a line beside the result, to standard error. There is no place to report that this fails.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_but_a_full_disk_is() {
        assert!(say_to(&mut Fails(ErrorKind::BrokenPipe), "x").is_ok());
        assert_eq!(say_to(&mut Fails(ErrorKind::StorageFull), "x").unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
