//! Rules for the paths of a service of HTTP.
//!
//! A service may read a path in more ways than one: it may decode `%61`, ignore case or a slash at the end, and resolve
//! `..`. So that none of these leads around a rule, a path is compared without its case and without a slash at its end, after
//! it was decoded once. A path that is still ambiguous then matches no rule: see [`Found::Ambiguous`].

use std::{borrow::Cow, collections::BTreeMap};

use super::AccessRule;

/// What a path may be, for messages.
pub(super) const PATH: &str = "a path, as /a/b, or one with all paths below it, as /a/*";
/// What a method may be, for messages.
pub(super) const METHOD: &str = "a method of HTTP, as GET";

/// The longest path in a rule.
const PATTERN_BYTES: usize = 1_024;
/// The most methods in a rule.
const METHODS: usize = 32;

/// Who may call the requests that one path and some methods match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// `/a/b`, or `/a/*` for `/a` and all paths below it.
    pub path: String,
    /// Methods of HTTP, in upper case. Empty: all. GET includes HEAD.
    pub methods: Vec<String>,
    /// Who may call.
    pub rule: AccessRule,
}

/// The rules for the paths of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    /// As they are written.
    written: Vec<PathRule>,
    /// The places of the rules of each path in `written`, by the path in lower case.
    exact: BTreeMap<String, Vec<usize>>,
    /// The same of those that end with `/*`, by what is before that.
    below: BTreeMap<String, Vec<usize>>,
    /// How long the keys of `below` are, longest first.
    lengths: Vec<usize>,
}

/// What the rules say of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'r> {
    /// This rule decides.
    Rule(&'r AccessRule),
    /// There are rules for the path, and none of them is for the method.
    OtherMethod {
        /// All of them are only tried.
        is_audit: bool,
    },
    /// Services may read the path in several ways, so nobody may call it.
    Ambiguous {
        /// All rules for paths are only tried.
        is_audit: bool,
    },
    /// No rule is for the path.
    Nothing,
}

impl PathRules {
    /// Puts rules together.
    ///
    /// # Errors
    /// The place of a rule that is wrong, the name of its field, and what was found there with what is allowed.
    pub fn new(written: Vec<PathRule>) -> Result<Self, (usize, &'static str, String)> {
        let mut rules = Self::default();
        for (place, rule) in written.iter().enumerate() {
            let wrong_methods = |text: String| Err((place, "methods", text));
            if rule.methods.len() > METHODS {
                return wrong_methods(format!("found {}; allowed: at most {METHODS}", rule.methods.len()));
            }
            if let Some(method) = rule.methods.iter().find(|method| !is_method(method)) {
                let found = crate::names::shown(method);
                return wrong_methods(format!("found {found:?}; allowed: {METHOD}"));
            }
            let wrong = |text: String| Err((place, "path", text));
            let found = crate::names::shown(&rule.path);
            let (into, key) = match rule.path.strip_suffix("/*") {
                Some(begin) => (&mut rules.below, begin),
                None => (&mut rules.exact, without_last_slash(&rule.path)),
            };
            if rule.path.len() > PATTERN_BYTES {
                return wrong(format!("found {} bytes; allowed: at most {PATTERN_BYTES}", rule.path.len()));
            }
            let is_plain = key.bytes().all(|b| b.is_ascii_graphic() && !b"?#*%".contains(&b));
            if !rule.path.starts_with('/') || !is_plain || is_ambiguous(format!("{key}/").as_bytes()) && key != "/" {
                return wrong(format!("found {found:?}; allowed: {PATH}"));
            }
            let of_path = into.entry(key.to_ascii_lowercase()).or_default();
            let overlaps = |other: &usize| overlap(&written[*other], rule);
            if let Some(other) = of_path.iter().copied().find(overlaps) {
                let other = &written[other].path;
                return wrong(format!("found {found:?}, which {other:?} has too for the same method; allowed: once"));
            }
            of_path.push(place);
        }
        rules.lengths = rules.below.keys().map(String::len).collect();
        rules.lengths.sort_unstable_by(|a, b| b.cmp(a));
        rules.lengths.dedup();
        rules.written = written;
        Ok(rules)
    }

    /// The rules as they are written.
    pub fn written(&self) -> &[PathRule] {
        &self.written
    }

    /// The rule for a request. Its path is without a query. The most specific path decides.
    pub(super) fn find(&self, method: &[u8], path: &[u8]) -> Found<'_> {
        // Two requests are about no path.
        if self.written.is_empty() || matches!((method, path), (b"CONNECT", b"") | (b"OPTIONS", b"*")) {
            return Found::Nothing;
        }
        // Some servers take `post` for `POST`.
        let path = if method.iter().any(u8::is_ascii_lowercase) { None } else { normal(path) };
        let Some(path) = path else {
            return Found::Ambiguous { is_audit: self.written.iter().all(|path| path.rule.is_audit) };
        };
        let path = without_last_slash(&path);
        let Some(places) = self.exact.get(path).or_else(|| self.below(path)) else { return Found::Nothing };
        // HEAD asks for what GET would answer.
        let method = if method == b"HEAD" { b"GET" } else { method };
        let rules = || places.iter().map(|place| &self.written[*place]);
        let of_method = rules().find(|rule| rule.methods.iter().any(|listed| listed.as_bytes() == method));
        let rule = of_method.or_else(|| rules().find(|rule| rule.methods.is_empty()));
        let otherwise = || Found::OtherMethod { is_audit: rules().all(|rule| rule.rule.is_audit) };
        rule.map_or_else(otherwise, |rule| Found::Rule(&rule.rule))
    }

    fn below(&self, path: &str) -> Option<&Vec<usize>> {
        let is_begin = |length: &usize| path.len() == *length || path.as_bytes().get(*length) == Some(&b'/');
        let lengths = self.lengths.iter().copied().filter(is_begin);
        lengths.filter_map(|length| path.get(..length)).find_map(|begin| self.below.get(begin))
    }
}

/// Whether a request can match both, which have the same path.
fn overlap(one: &PathRule, other: &PathRule) -> bool {
    one.methods.is_empty() == other.methods.is_empty()
        && (one.methods.is_empty() || one.methods.iter().any(|method| other.methods.contains(method)))
}

fn is_method(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_')
        && text != "HEAD"
}

fn without_last_slash(path: &str) -> &str {
    match path.strip_suffix('/') {
        Some("") | None => path,
        Some(shorter) => shorter,
    }
}

/// The path as it is compared. `None` if services may read it in several ways.
fn normal(path: &[u8]) -> Option<Cow<'_, str>> {
    // Some servers cut a fragment off, though none should reach them.
    if path.contains(&b'#') {
        return None;
    }
    let is_plain = path.iter().all(|b| b.is_ascii_graphic() && *b != b'%' && !b.is_ascii_uppercase());
    let path = if is_plain { Cow::Borrowed(path) } else { Cow::Owned(decoded(path)?) };
    if is_ambiguous(&path) {
        return None;
    }
    match path {
        Cow::Borrowed(path) => std::str::from_utf8(path).ok().map(Cow::Borrowed),
        Cow::Owned(path) => String::from_utf8(path).ok().map(Cow::Owned),
    }
}

/// Decodes it once, in lower case. `None` if it is not well-formed, or would have to be decoded again.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = if *first == b'%' {
            let [high, low, tail @ ..] = rest else { return None };
            rest = tail;
            let digit = |b: u8| char::from(b).to_digit(16);
            let byte = (digit(*high)? * 16 + digit(*low)?) as u8;
            // What is a separator only for those who decode, and what is decoded twice by some.
            if b"/\\%.;?#".contains(&byte) {
                return None;
            }
            byte
        } else {
            *first
        };
        if byte.is_ascii_control() {
            return None;
        }
        decoded.push(byte.to_ascii_lowercase());
    }
    Some(decoded)
}

/// Whether it has an empty segment, `.` or `..`, a backslash, or parameters (`;`), which some servers remove.
fn is_ambiguous(path: &[u8]) -> bool {
    let mut before = 0;
    let mut segment = 0;
    let mut is_dots = true;
    for (place, byte) in path.iter().enumerate() {
        match byte {
            b'/' if place > 0 => {
                if place == before + 1 || (is_dots && segment <= 2) {
                    return true;
                }
                (before, segment, is_dots) = (place, 0, true);
            }
            b'/' => {}
            b'\\' | b';' => return true,
            _ => {
                segment += 1;
                is_dots &= *byte == b'.';
            }
        }
    }
    // What follows the last slash, which may be nothing.
    path.first() != Some(&b'/') || (is_dots && (1..=2).contains(&segment))
}

#[cfg(test)]
mod tests {
    use super::{super::callers::Callers, *};

    fn rule(path: &str, methods: &[&str], caller: &str) -> PathRule {
        PathRule {
            path: path.to_owned(),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            rule: AccessRule { callers: Callers::parse(&[caller]).unwrap(), is_audit: false },
        }
    }

    fn rules() -> PathRules {
        PathRules::new(vec![
            rule("/*", &[], "all"),
            rule("/shop/*", &["GET"], "readers"),
            rule("/shop/*", &["POST", "PUT"], "writers"),
            rule("/shop/Admin", &[], "admins"),
            rule("/shop/admin/*", &[], "below"),
            rule("/shop/admin/open/*", &[], "open"),
        ])
        .unwrap()
    }

    fn found(rules: &PathRules, method: &str, path: &str) -> String {
        match rules.find(method.as_bytes(), path.as_bytes()) {
            Found::Rule(rule) => rule.callers.to_string(),
            Found::OtherMethod { is_audit: false } => "OtherMethod".to_owned(),
            Found::Ambiguous { is_audit: false } => "Ambiguous".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_most_specific_path_decides() {
        let rules = rules();
        for (method, path, expected) in [
            ("GET", "/", "all"),
            ("GET", "/shop", "readers"),
            ("GET", "/shop/", "readers"),
            ("GET", "/shopping", "all"),
            ("GET", "/shop/x", "readers"),
            ("HEAD", "/shop/x/y", "readers"),
            ("PUT", "/shop/x", "writers"),
            ("DELETE", "/shop/x", "OtherMethod"),
            ("DELETE", "/shop/admin", "admins"),
            ("GET", "/shop/admin/x", "below"),
            ("GET", "/shop/admin/opened", "below"),
            ("GET", "/shop/admin/open", "open"),
            ("GET", "/shop/admin/open/door", "open"),
            ("OPTIONS", "*", "Nothing"),
            ("CONNECT", "", "Nothing"),
            ("GET", "", "Ambiguous"),
            ("GET", "*", "Ambiguous"),
            ("post", "/shop/x", "Ambiguous"),
            ("GeT", "/shop/x", "Ambiguous"),
        ] {
            assert_eq!(found(&rules, method, path), expected, "{method} {path}");
        }
        assert_eq!(found(&PathRules::default(), "GET", "/a/../b"), "Nothing", "nothing can be led around");
        assert_eq!(rules.find(b"GET", b"/shop/\xff"), Found::Ambiguous { is_audit: false });
        assert_eq!(rules.find(b"GET", b"\xff"), Found::Ambiguous { is_audit: false });
    }

    #[test]
    fn no_spelling_of_a_path_leads_around_its_rule() {
        let rules = rules();
        for path in ["/shop/ADMIN", "/shop/admin/", "/SHOP/admin", "/shop/%61dmin", "/shop/%41DMIN", "/%73hop/adm%69n/"]
        {
            assert_eq!(found(&rules, "GET", path), "admins", "{path}");
        }
        for path in [
            "//shop/admin",
            "/shop//admin",
            "/shop/admin//",
            "/shop/./admin",
            "/shop/x/../admin",
            "/shop/..",
            "/shop/.",
            "/../shop/admin",
            "/x/..;/shop/admin",
            "/shop;x=1/admin",
            "/shop/admin;jsessionid=1",
            "/shop%2fadmin",
            "/shop%2Fadmin",
            "/shop/x/%2e%2e/admin",
            "/shop/x/.%2E/admin",
            "/shop/x%5c..%5cadmin",
            "/shop\\admin",
            "/shop/%2561dmin",
            "/shop/admin%00",
            "/shop/admin%0a",
            "/shop/admin%",
            "/shop/admin%2",
            "/shop/admin%zz",
            "/shop/%ff",
            "/shop/admin#x",
            "/shop/admin%3f",
            "/shop/admin%23",
            "shop/admin",
            "http://shop/admin",
        ] {
            assert_eq!(found(&rules, "GET", path), "Ambiguous", "{path}");
        }
        for path in [
            "/shop/...",
            "/shop/a.b",
            "/shop/.well-known/x",
            "/shop/a..b",
            "/shop/%C3%A9",
            "/shop/a%20b",
            "/shop/:x@y!$&'()+,=~",
        ] {
            assert_eq!(found(&rules, "GET", path), "readers", "{path}");
        }
    }

    #[test]
    fn rules_that_are_only_tried_refuse_nothing_else_either() {
        let tried = |methods| {
            let mut rule = rule("/a", methods, "friend");
            rule.rule.is_audit = true;
            rule
        };
        let rules = PathRules::new(vec![tried(&["GET"])]).unwrap();
        assert_eq!(rules.find(b"POST", b"/a"), Found::OtherMethod { is_audit: true });
        assert_eq!(rules.find(b"GET", b"//a"), Found::Ambiguous { is_audit: true });
        let one_of_two = PathRules::new(vec![tried(&["GET"]), rule("/b", &["GET"], "friend")]).unwrap();
        assert_eq!(one_of_two.find(b"POST", b"/a"), Found::OtherMethod { is_audit: true });
        assert_eq!(one_of_two.find(b"POST", b"/b"), Found::OtherMethod { is_audit: false });
        assert_eq!(one_of_two.find(b"GET", b"//a"), Found::Ambiguous { is_audit: false });
    }

    /// The place of the rule for a request, by a walk over all rules.
    fn plainly(rules: &[PathRule], method: &str, path: &str) -> Option<Option<usize>> {
        let segments =
            |path: &str| path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let asked = segments(&path.to_lowercase());
        let depth = |rule: &PathRule| {
            let pattern = segments(&rule.path.to_lowercase());
            match pattern.split_last() {
                // One more for a path that is exactly this.
                Some((last, below)) if last == "*" => asked.starts_with(below).then_some(2 * below.len()),
                _ => (asked == pattern).then_some(2 * pattern.len() + 1),
            }
        };
        let deepest = rules.iter().filter_map(depth).max()?;
        let of_path: Vec<usize> = (0..rules.len()).filter(|place| depth(&rules[*place]) == Some(deepest)).collect();
        let names = |place: &&usize| rules[**place].methods.iter().any(|listed| listed == method);
        let of_all = |place: &&usize| rules[**place].methods.is_empty();
        Some(of_path.iter().find(names).or_else(|| of_path.iter().find(of_all)).copied())
    }

    #[test]
    fn any_rules_decide_as_a_walk_over_them_does() {
        let mut seed = 11_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let mut found_some = 0;
        for _ in 0..2_000 {
            let mut path = |most: usize| -> String {
                let parts: String =
                    (0..random(most)).map(|_| format!("/{}", ["a", "b", "A", "bb"][random(4)])).collect();
                if random(3) == 0 { parts + "/" } else { parts }
            };
            let patterns: Vec<String> = (0..8).map(|_| path(4)).collect();
            let asked: Vec<String> = (0..20).map(|_| path(6)).collect();
            let rules: Vec<PathRule> = patterns
                .iter()
                .enumerate()
                .map(|(place, pattern)| {
                    let pattern = pattern.trim_end_matches('/');
                    let path = match random(2) {
                        0 if !pattern.is_empty() => pattern.to_owned(),
                        _ => format!("{pattern}/*"),
                    };
                    rule(&path, [&[][..], &["GET"], &["POST"]][random(3)], &format!("r{place}"))
                })
                .collect();
            // Rules that are there twice are refused.
            let Ok(compiled) = PathRules::new(rules.clone()) else { continue };
            for path in asked.iter().map(|path| if path.is_empty() { "/" } else { path }) {
                for method in ["GET", "POST", "PUT"] {
                    let expected = match plainly(&rules, method, path) {
                        None => "Nothing".to_owned(),
                        Some(None) => "OtherMethod".to_owned(),
                        Some(Some(place)) => rules[place].rule.callers.to_string(),
                    };
                    found_some += usize::from(expected != "Nothing");
                    assert_eq!(found(&compiled, method, path), expected, "{method} {path} of {rules:?}");
                }
            }
        }
        assert!(found_some > 1_000, "{found_some}");
    }

    #[test]
    fn wrong_rules_are_refused_by_their_place() {
        for (rule_, field, text) in [
            (
                rule("shop", &[], "a"),
                "path",
                "found \"shop\"; allowed: a path, as /a/b, or one with all paths below it, as /a/*",
            ),
            (
                rule("/a*", &[], "a"),
                "path",
                "found \"/a*\"; allowed: a path, as /a/b, or one with all paths below it, as /a/*",
            ),
            (rule("/a/*/b", &[], "a"), "path", "found \"/a/*/b\""),
            (rule("/a/../b", &[], "a"), "path", "found \"/a/../b\""),
            (rule("/a//b", &[], "a"), "path", "found \"/a//b\""),
            (rule("/a%20b", &[], "a"), "path", "found \"/a%20b\""),
            (rule("/a b", &[], "a"), "path", "found \"/a b\""),
            (rule("/a?b", &[], "a"), "path", "found \"/a?b\""),
            (rule("", &[], "a"), "path", "found \"\""),
            (rule(&format!("/{}", "a".repeat(1_024)), &[], "a"), "path", "found 1025 bytes; allowed: at most 1024"),
            (
                rule("/A/", &["GET"], "a"),
                "path",
                "found \"/A/\", which \"/a\" has too for the same method; allowed: once",
            ),
            (rule("/b", &["get"], "a"), "methods", "found \"get\"; allowed: a method of HTTP, as GET"),
            (rule("/b", &["HEAD"], "a"), "methods", "found \"HEAD\""),
        ] {
            let error = PathRules::new(vec![rule("/a", &["GET", "PUT"], "a"), rule_]).unwrap_err();
            assert!(error.0 == 1 && error.1 == field && error.2.starts_with(text), "{error:?}");
        }
        let of_some_and_of_all = vec![rule("/a", &["GET"], "a"), rule("/a", &[], "b")];
        let rules = PathRules::new(of_some_and_of_all).unwrap();
        assert_eq!((found(&rules, "GET", "/a"), found(&rules, "PUT", "/a")), ("a".into(), "b".into()));
        let of_all_first = PathRules::new(vec![rule("/a", &[], "b"), rule("/a", &["GET"], "a")]).unwrap();
        assert_eq!(found(&of_all_first, "GET", "/a"), "a", "the order does not matter");
    }
}
