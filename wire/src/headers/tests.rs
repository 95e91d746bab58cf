use super::*;

fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    headers
}

fn pairs(headers: &Headers) -> Vec<(&str, &str)> {
    let text = |bytes| std::str::from_utf8(bytes).expect("the tests have text");
    headers.iter().map(|(name, value)| (text(name), text(value))).collect()
}

const CALL: [(&str, &str); 6] = [
    (":method", "POST"),
    (":path", "/shop.Cart/Add"),
    ("te", "trailers"),
    ("x-own", "one"),
    ("accept", "a"),
    ("x-own", "two"),
];

#[test]
fn fields_are_found_by_name() {
    let headers = list(&CALL);
    assert_eq!(headers.method(), Some(b"POST".as_slice()));
    assert_eq!(headers.path(), Some(b"/shop.Cart/Add".as_slice()));
    assert_eq!((headers.scheme(), headers.authority(), headers.protocol(), headers.status()), (None, None, None, None));
    assert_eq!(headers.get(Name::TE), Some(b"trailers".as_slice()));
    assert_eq!(headers.get(Name::METHOD), headers.method());
    assert_eq!(headers.get(Name::other("x-own")), Some(b"one".as_slice()));
    assert_eq!(headers.get_single(Name::other("x-own")), None);
    assert_eq!(headers.get_single(Name::ACCEPT), Some(b"a".as_slice()));
    assert_eq!(headers.all(Name::other("x-own")).count(), 2);
    assert_eq!(headers.get(Name::other("x-none")), None);
    assert_eq!(headers.len(), 6);
    assert_eq!(headers.list_bytes(), CALL.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>());
    assert_eq!(pairs(&headers), CALL);
    assert_eq!(
        headers.fields().map(|field| field.value).collect::<Vec<_>>(),
        [b"trailers".as_slice(), b"one", b"a", b"two"]
    );
}

#[test]
fn status_has_three_digits() {
    let status = |text| list(&[(":status", text)]).status();
    assert_eq!((status("200"), status("103")), (Some(200), Some(103)));
    assert_eq!(
        (status("20"), status("2000"), status("20x"), status("000"), status("+99")),
        (None, None, None, None, None)
    );
}

#[test]
fn setting_replaces_every_field_of_the_name() {
    let mut headers = list(&CALL);
    headers.set(Name::other("x-own"), b"a value that is longer");
    headers.set(Name::TE, b"");
    headers.set(Name::PATH, b"/");
    headers.set(Name::GRPC_TIMEOUT, b"1S");
    let now = [
        (":method", "POST"),
        (":path", "/"),
        ("te", ""),
        ("x-own", "a value that is longer"),
        ("accept", "a"),
        ("grpc-timeout", "1S"),
    ];
    assert_eq!(pairs(&headers), now);
    assert_eq!(headers, list(&now));
    assert_eq!(headers.list_bytes(), list(&now).list_bytes());
    headers.set(Name::other("x-own"), b"short");
    assert_eq!(headers.get_single(Name::other("x-own")), Some(b"short".as_slice()));
}

#[test]
fn pseudo_headers_stay_in_front() {
    let mut headers = list(&CALL);
    headers.set(Name::AUTHORITY, b"cart");
    headers.append_bytes(b":scheme", b"http");
    assert!(headers.remove(Name::METHOD));
    headers.set(Name::METHOD, b"GET");
    let front: Vec<&str> = pairs(&headers).iter().map(|(name, _)| *name).take(5).collect();
    assert_eq!(front, [":path", ":authority", ":scheme", ":method", "te"]);
    let found = (headers.method(), headers.path(), headers.authority(), headers.scheme());
    let wanted: [&[u8]; 4] = [b"GET", b"/shop.Cart/Add", b"cart", b"http"];
    assert_eq!(found, (Some(wanted[0]), Some(wanted[1]), Some(wanted[2]), Some(wanted[3])));
    assert_eq!(headers.fields().count(), 4);
}

#[test]
fn removed_fields_are_gone() {
    let mut headers = list(&CALL);
    assert!(headers.remove(Name::other("x-own")));
    assert!(!headers.remove(Name::other("x-own")));
    assert!(!headers.remove(Name::HOST));
    assert!(headers.remove(Name::PATH));
    let left = [("te", "trailers"), ("accept", "a")];
    assert_eq!(headers.path(), None);
    assert_eq!(pairs(&headers)[1..], left);
    headers.remove(Name::METHOD);
    assert_eq!(headers, list(&left));
    assert_eq!((headers.len(), headers.list_bytes()), (2, list(&left).list_bytes()));
    left.iter().for_each(|(name, _)| assert!(headers.remove(Name::other(name))));
    assert!(headers.is_empty());
    assert_eq!(headers.list_bytes(), 0);
    headers.append(Name::TE, b"trailers");
    assert_eq!(headers, list(&left[..1]));
}

#[test]
fn a_reused_list_keeps_nothing_of_its_old_content() {
    let mut headers = list(&CALL);
    let mut copy = Headers::new();
    copy.copy_from(&headers);
    assert_eq!(copy, headers);
    headers.clear();
    assert!(headers.is_empty() && headers.method().is_none() && headers.get(Name::TE).is_none());
    assert_eq!(headers, Headers::new());
    assert_ne!(copy, headers);
    copy.append_bytes(b"x-long", &[b'v'; 100_000]);
    copy.clear();
    copy.shrink();
    assert!(copy.text.capacity() <= 2 * KEPT_TEXT_BYTES);
}

#[test]
fn remove_like_removes_names_that_a_program_may_take_for_this_one() {
    let mut headers = list(&[
        (":method", "POST"),
        ("x-forwarded-client-cert", "one"),
        ("x_forwarded_client_cert", "two"),
        ("x-forwarded_client-cert", "three"),
        ("x.forwarded~client!cert", "four"),
        ("x-forwarded-client-cert", "five"),
        ("xxforwarded-client-cert", "a letter is no separator"),
        ("x-forwarded-client-certs", "longer"),
    ]);
    assert!(headers.has_like(Name::X_FORWARDED_CLIENT_CERT));
    headers.remove_like(Name::X_FORWARDED_CLIENT_CERT);
    let rest = [
        (":method", "POST"),
        ("xxforwarded-client-cert", "a letter is no separator"),
        ("x-forwarded-client-certs", "longer"),
    ];
    assert_eq!(pairs(&headers), rest);
    assert_eq!(headers.list_bytes(), rest.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>());
    assert!(!headers.has_like(Name::X_FORWARDED_CLIENT_CERT));
    headers.append(Name::X_FORWARDED_CLIENT_CERT, b"ours");
    assert_eq!(headers.get_single(Name::X_FORWARDED_CLIENT_CERT), Some(&b"ours"[..]));

    let mut unknown = list(&[("x_own", "one"), ("x-own", "two")]);
    unknown.remove_like(Name::other("x-own"));
    assert!(unknown.is_empty());
}
