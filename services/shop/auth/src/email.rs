//! The e-mail addresses that the shop accepts: `addr-spec` of RFC 5322, section 3.4.1, within the sizes of RFC 5321,
//! section 4.5.3.1. Not accepted are forms that are rare and that much software can't handle: quoted local parts,
//! comments, address literals (`ada@[192.0.2.1]`) and domains of one label.

/// The longest address: a path of 256 octets without its angle brackets (RFC 5321, section 4.5.3.1.3).
const MAX_BYTES: usize = 254;
/// RFC 5321, section 4.5.3.1.1
const MAX_LOCAL_BYTES: usize = 64;
/// RFC 1035, section 2.3.4
const MAX_LABEL_BYTES: usize = 63;

/// The address to store: trimmed, its domain in lower case. The local part keeps its case (RFC 5321, section 2.4).
///
/// # Errors
/// It is not well formed; the text says why.
pub(crate) fn normalize(address: &str) -> Result<String, &'static str> {
    let address = address.trim();
    if address.is_empty() {
        return Err("is missing");
    }
    if address.len() > MAX_BYTES {
        return Err("is longer than 254 bytes");
    }
    let (local, domain) = address.rsplit_once('@').ok_or("has no @")?;
    check_local(local)?;
    check_domain(domain)?;
    Ok(format!("{local}@{}", domain.to_ascii_lowercase()))
}

/// `dot-atom-text` of RFC 5322, section 3.2.3
fn check_local(local: &str) -> Result<(), &'static str> {
    if local.is_empty() {
        return Err("has nothing before the @");
    }
    if local.len() > MAX_LOCAL_BYTES {
        return Err("has more than 64 bytes before the @");
    }
    if local.split('.').any(str::is_empty) {
        return Err("has a dot at the start or the end of the part before the @, or two in a row");
    }
    match local.bytes().all(|b| b == b'.' || is_atext(b)) {
        true => Ok(()),
        false => Err("has a character before the @ that is not allowed there"),
    }
}

fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

/// A domain of at least two labels (RFC 1035, section 2.3.1, with the leading digits of RFC 1123, section 2.1).
fn check_domain(domain: &str) -> Result<(), &'static str> {
    let labels: Vec<_> = domain.split('.').collect();
    if labels.len() < 2 {
        return Err("has a domain with no dot");
    }
    for label in &labels {
        if label.is_empty() || label.len() > MAX_LABEL_BYTES {
            return Err("has a domain with a label that is empty or longer than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("has a domain with a label that starts or ends with -");
        }
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err("has a character in its domain that is not a letter, a digit, - or a dot");
        }
    }
    let is_numeric = labels.last().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if is_numeric { Err("has an IP address, or what looks like one, as its domain") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_addresses_are_accepted() {
        for (given, kept) in [
            ("ada@example.com", "ada@example.com"),
            (" Ada.Lovelace+shop@Example.COM\n", "Ada.Lovelace+shop@example.com"),
            ("o'hara!#$%&*/=?^_`{|}~-@x.y-z.museum", "o'hara!#$%&*/=?^_`{|}~-@x.y-z.museum"),
            ("1@1.xn--p1ai", "1@1.xn--p1ai"),
        ] {
            assert_eq!(normalize(given).as_deref(), Ok(kept));
        }
    }

    #[test]
    fn others_are_refused() {
        for refused in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@example",
            "ada@.com",
            "ada@example.com.",
            "ada@exa mple.com",
            ".ada@example.com",
            "ada.@example.com",
            "a..da@example.com",
            "a da@example.com",
            "a@da@example.com",
            "\"a da\"@example.com",
            "ada@[192.0.2.1]",
            "ada@192.0.2.1",
            "ada@-x.com",
            "ada@x-.com",
            "ada@x_y.com",
            "ädä@example.com",
            "ada@exämple.com",
            "ada@example.com\r\nBcc: bob@example.com",
        ] {
            assert!(normalize(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_standard() {
        let local = |n: usize| format!("{}@example.com", "a".repeat(n));
        assert!(normalize(&local(64)).is_ok());
        assert!(normalize(&local(65)).is_err());
        let domain = |n: usize| format!("a@{}.com", "b".repeat(n));
        assert!(normalize(&domain(63)).is_ok());
        assert!(normalize(&domain(64)).is_err());
        let whole = |n: usize| format!("a@{}{}", "b.".repeat((n - 4) / 2), "c".repeat(2 + n % 2));
        assert_eq!((whole(254).len(), whole(255).len()), (254, 255));
        assert!(normalize(&whole(254)).is_ok());
        assert_eq!(normalize(&whole(255)), Err("is longer than 254 bytes"));
    }
}
