use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn rules(flags: &str) -> Rules {
    let flags = ["weft"].into_iter().chain(flags.split_whitespace());
    Rules::of(&Cli::try_parse_from(flags).unwrap_or_else(|e| panic!("{e}")).args)
}

fn refused(flags: &str) -> String {
    let flags = ["weft"].into_iter().chain(flags.split_whitespace());
    Cli::try_parse_from(flags).err().expect("it is refused").to_string()
}

const ALL: &str = "--uid 1337 --gid 7 --ipv6 on --exclude-outbound-ports 22,8000-8100 \
                   --exclude-outbound-ranges 10.0.0.0/8,fd00::/8 --include-outbound-ports 80,443 \
                   --include-outbound-ranges 192.0.2.0/24 --exclude-inbound-ports 9090";

#[test]
fn the_rules_of_nft_are_those_of_the_flags() {
    let text = nft::render(&rules(ALL));
    let expected = "\
table inet weft {}
delete table inet weft
table inet weft {
  chain outbound {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    meta skuid { 1337 } return
    meta skgid { 7 } return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    tcp dport { 22, 8000-8100 } return
    ip daddr { 10.0.0.0/8 } return
    ip6 daddr { fd00::/8 } return
    tcp dport != { 80, 443 } return
    ip daddr != { 192.0.2.0/24 } return
    meta nfproto ipv6 return
    meta l4proto tcp redirect to :15001
  }
  chain inbound {
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
    iif lo return
    tcp dport { 15000-15020, 9090 } return
    meta l4proto tcp redirect to :15006
  }
}
";
    assert_eq!(text, expected);
    let without = nft::render(&rules("--uid 1 --ipv6 off --no-inbound"));
    assert!(without.contains("meta nfproto ipv6 return") && !without.contains("prerouting"), "{without}");
}

#[test]
fn the_rules_of_iptables_are_those_of_the_flags() {
    let text = iptables::testing::rendered(&rules(ALL), "");
    for line in [
        ":WEFT_OUTBOUND - [0:0]",
        "-A WEFT_OUTBOUND -m owner --uid-owner 1337 -j RETURN",
        "-A WEFT_OUTBOUND -m owner --gid-owner 7 -j RETURN",
        "-A WEFT_OUTBOUND -d 127.0.0.0/8 -j RETURN",
        "-A WEFT_OUTBOUND -p tcp --dport 8000:8100 -j RETURN",
        "-A WEFT_OUTBOUND -d 10.0.0.0/8 -j RETURN",
        "-A WEFT_OUTBOUND -p tcp -d 192.0.2.0/24 --dport 443 -j REDIRECT --to-ports 15001",
        "-A OUTPUT -p tcp -j WEFT_OUTBOUND",
        "-A WEFT_INBOUND -i lo -j RETURN",
        "-A WEFT_INBOUND -p tcp -j REDIRECT --to-ports 15006",
        "-A PREROUTING -p tcp -j WEFT_INBOUND",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
    // A second run replaces the rules of the first; the rules of others stay.
    let present = ":WEFT_OUTBOUND - [0:0]\n-A OUTPUT -p tcp -j WEFT_OUTBOUND\n-A OUTPUT -j THEIRS\n";
    let again = iptables::testing::rendered(&rules(ALL), present);
    assert_eq!(again.matches("-D OUTPUT -p tcp -j WEFT_OUTBOUND").count(), 1, "{again}");
    let removed = iptables::testing::removed(present);
    assert_eq!(removed, "*nat\n-D OUTPUT -p tcp -j WEFT_OUTBOUND\n-F WEFT_OUTBOUND\n-X WEFT_OUTBOUND\nCOMMIT\n");
}

#[test]
fn a_sidecar_s_own_ports_are_never_redirected() {
    let inbound = rules("--uid 1 --inbound-port 20006 --outbound-port 15001").inbound.expect("it is redirected");
    assert_eq!(inbound.excluded_ports, [OWN_PORTS, Ports::one(20_006)]);
}

#[test]
fn a_wrong_flag_is_reported_with_what_is_allowed() {
    for (flags, told) in [
        ("", "--uid"),
        ("--uid 1 --exclude-outbound-ports 0", "allowed: 1 to 65535"),
        ("--uid 1 --include-inbound-ports 90-80", "`90-80` is not a port or a range of ports"),
        ("--uid 1 --exclude-outbound-ranges 10.0.0.0/33", "32 bits at most"),
        ("--uid 1 --exclude-outbound-ranges 10.0.0.1/8", "allowed: 10.0.0.0/8"),
        ("--uid 1 --exclude-outbound-ranges ten", "`ten` is not a network"),
        ("--uid nobody-of-that-name", "no user `nobody-of-that-name`"),
        ("--uid 1 --outbound-port 0", "--outbound-port"),
    ] {
        let error = refused(flags);
        assert!(error.contains(told), "{flags}: {error}");
    }
    assert_eq!(rules("--uid root").uids, [0]);
}
