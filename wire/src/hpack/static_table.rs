//! The static table (RFC 7541, appendix A).

use crate::headers::name::{Id, static_index};

/// How many fields the static table has; the indices of the dynamic table start after them.
pub(crate) const STATIC_LEN: usize = 61;

/// The fields that have a value, by index.
const VALUES: [(usize, &str); 14] = [
    (2, "GET"),
    (3, "POST"),
    (4, "/"),
    (5, "/index.html"),
    (6, "http"),
    (7, "https"),
    (8, "200"),
    (9, "204"),
    (10, "206"),
    (11, "304"),
    (12, "400"),
    (13, "404"),
    (14, "500"),
    (16, "gzip, deflate"),
];

/// Name and value by index; the first is unused.
static FIELDS: [(Id, &str); STATIC_LEN + 1] = fields();

const fn fields() -> [(Id, &'static str); STATIC_LEN + 1] {
    let mut fields = [(0, ""); STATIC_LEN + 1];
    let mut index = 1;
    while index <= STATIC_LEN {
        fields[index].0 = match index as Id {
            1 => 1,
            2..=3 => 2,
            4..=5 => 3,
            6..=7 => 4,
            8..=14 => 5,
            index => index - 8,
        };
        index += 1;
    }
    let mut at = 0;
    while at < VALUES.len() {
        fields[VALUES[at].0].1 = VALUES[at].1;
        at += 1;
    }
    fields
}

/// The field at an index from 1 to [`STATIC_LEN`].
#[inline]
pub(crate) fn field(index: usize) -> (Id, &'static [u8]) {
    let (id, value) = FIELDS[index];
    (id, value.as_bytes())
}

/// The index of a whole field, or 0.
#[inline]
pub(crate) fn find(id: Id, value: &[u8]) -> u8 {
    let first = static_index(id);
    let last = match first {
        2 | 4 | 6 => first + 1,
        8 => 14,
        16 => 16,
        _ => return 0,
    };
    (first..=last).find(|&index| FIELDS[usize::from(index)].1.as_bytes() == value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::name::TEXTS;

    #[test]
    fn the_table_is_that_of_the_rfc() {
        let text = |index: usize| (TEXTS[usize::from(field(index).0)], FIELDS[index].1);
        let some = [
            (1, (":authority", "")),
            (2, (":method", "GET")),
            (3, (":method", "POST")),
            (4, (":path", "/")),
            (5, (":path", "/index.html")),
            (6, (":scheme", "http")),
            (7, (":scheme", "https")),
            (8, (":status", "200")),
            (11, (":status", "304")),
            (14, (":status", "500")),
            (15, ("accept-charset", "")),
            (16, ("accept-encoding", "gzip, deflate")),
            (19, ("accept", "")),
            (20, ("access-control-allow-origin", "")),
            (28, ("content-length", "")),
            (31, ("content-type", "")),
            (32, ("cookie", "")),
            (38, ("host", "")),
            (48, ("proxy-authenticate", "")),
            (50, ("range", "")),
            (58, ("user-agent", "")),
            (61, ("www-authenticate", "")),
        ];
        some.iter().for_each(|&(index, field)| assert_eq!(text(index), field, "{index}"));
        let mut last = 0;
        for index in 1..=STATIC_LEN {
            let (id, value) = field(index);
            assert!(usize::from(static_index(id)) <= index && static_index(id) >= last, "{index}");
            last = static_index(id);
            assert_eq!(usize::from(find(id, value)), if value.is_empty() { 0 } else { index });
        }
    }
}
