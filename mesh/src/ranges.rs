//! Ports and networks as flags and annotations name them: `80`, `8000-8100`, `10.0.0.0/8`.

use std::{fmt, net::IpAddr, str::FromStr};

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// At least 1.
    pub first: u16,
    /// Not less than the first.
    pub last: u16,
}

impl Ports {
    /// A single port.
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether a port is one of them.
    pub fn holds(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// With this character between the two numbers.
    pub fn text(self, between: char) -> String {
        if self.first == self.last { self.first.to_string() } else { format!("{}{between}{}", self.first, self.last) }
    }
}

/// As it is read.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text('-'))
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

/// A network, whose addresses have the same first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub address: IpAddr,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_shown_the_same() {
        for text in ["80", "8000-8100", "1-65535"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("fd00::/8", "fd00::/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
        for wrong in ["", "0", "65536", "90-80", "80-", "a", "80,90", " 80"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
        for wrong in ["", "ten", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/", "10.0.0.0/8/8", "fd00::/129"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
