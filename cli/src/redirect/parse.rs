//! The values of the flags: ports, networks and users.

use std::{fmt, net::IpAddr, str::FromStr};

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Ports {
    pub(super) fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub(super) fn holds(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// With this character between the two numbers.
    pub(super) fn text(self, between: char) -> String {
        if self.first == self.last { self.first.to_string() } else { format!("{}{between}{}", self.first, self.last) }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => {
                Err(format!("`{text}` is not a port or a range of ports; allowed: 1 to 65535, such as 80 or 8000-8100"))
            }
        }
    }
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cidr {
    pub(super) address: IpAddr,
    prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a network; allowed: an address, with or without a prefix, such as 10.0.0.0/8");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if prefix > most {
            return Err(format!("`{text}`: a prefix of this family has {most} bits at most"));
        }
        let network = Self { address, prefix }.masked();
        if network != address {
            return Err(format!("`{text}` has bits after its prefix; allowed: {network}/{prefix}"));
        }
        Ok(Self { address, prefix })
    }
}

impl Cidr {
    /// The address with all bits after the prefix set to 0.
    fn masked(&self) -> IpAddr {
        let drop = |bits: u32, of: u32| of - bits;
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(drop(self.prefix.into(), 32)).unwrap_or(0);
                IpAddr::V4((u32::from(address) & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(drop(self.prefix.into(), 128)).unwrap_or(0);
                IpAddr::V6((u128::from(address) & mask).into())
            }
        }
    }
}

/// The number of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uid(pub(super) u32);

impl FromStr for Uid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let users = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
        let of_line = |line: &str| {
            let mut fields = line.split(':');
            (fields.next()? == text).then(|| fields.nth(1)?.parse().ok())?
        };
        users.lines().find_map(of_line).map(Self).ok_or_else(|| format!("this host has no user `{text}`"))
    }
}
