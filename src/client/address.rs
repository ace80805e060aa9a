//! Where a cluster is reached, as people write it.

use crate::base::code::Code;
use crate::client::Error;

/// The default client port of a node.
const DEFAULT_PORT: u16 = 7411;

/// One or more addresses of a cluster: any of its nodes will do, the others are learnt from it.
///
/// Each is `host:port` or `rrq://host:port`, the port may be left out (7411), and a text may hold
/// several, separated by commas. What [`Client::connect`](crate::client::Client::connect) takes
/// becomes one of these: a text, an array, slice or vector of texts, or what an iterator gives.
///
/// ```
/// use rrq::client::Addresses;
///
/// let one: Addresses = "rrq://queue.example".into();
/// let some: Addresses = ["10.0.0.1:7411", "10.0.0.2:7411"].into();
/// let listed: Addresses = (1..=3).map(|node| format!("10.0.0.{node}")).collect();
/// # let _ = (one, some, listed);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    texts: Vec<String>,
}

impl Addresses {
    /// `host:port` of each.
    pub(super) fn parse(&self) -> Result<Vec<String>, Error> {
        if self.texts.is_empty() {
            let words = "no address was given; expected host:port, e.g. 127.0.0.1:7411";
            return Err(Error::new(Code::BadArgument, words));
        }
        let parts = self.texts.iter().flat_map(|text| text.split(','));
        parts.map(|part| parse_address(part.trim())).collect()
    }
}

impl<T: Into<String>> FromIterator<T> for Addresses {
    fn from_iter<I: IntoIterator<Item = T>>(addresses: I) -> Self {
        let texts = addresses.into_iter().map(Into::into).collect();
        Self { texts }
    }
}

impl From<&str> for Addresses {
    fn from(text: &str) -> Self {
        [text].into()
    }
}

impl From<String> for Addresses {
    fn from(text: String) -> Self {
        Self { texts: vec![text] }
    }
}

impl From<&String> for Addresses {
    fn from(text: &String) -> Self {
        [text.as_str()].into()
    }
}

impl<T: AsRef<str>> From<&[T]> for Addresses {
    fn from(texts: &[T]) -> Self {
        texts.iter().map(AsRef::as_ref).collect()
    }
}

impl<T: AsRef<str>> From<Vec<T>> for Addresses {
    fn from(texts: Vec<T>) -> Self {
        texts.as_slice().into()
    }
}

impl<T: AsRef<str>> From<&Vec<T>> for Addresses {
    fn from(texts: &Vec<T>) -> Self {
        texts.as_slice().into()
    }
}

impl<T: AsRef<str>, const N: usize> From<[T; N]> for Addresses {
    fn from(texts: [T; N]) -> Self {
        texts.as_slice().into()
    }
}

impl<T: AsRef<str>, const N: usize> From<&[T; N]> for Addresses {
    fn from(texts: &[T; N]) -> Self {
        texts.as_slice().into()
    }
}

fn parse_address(text: &str) -> Result<String, Error> {
    let bad = || {
        let words = format!("`{text}` is no address; expected host:port, e.g. 127.0.0.1:7411");
        Error::new(Code::BadArgument, words)
    };
    let address = text.strip_prefix("rrq://").unwrap_or(text);
    let address = address.strip_suffix('/').unwrap_or(address);
    let is_ipv6 = address.starts_with('[');
    let port_at = match is_ipv6 {
        true => address.find("]:").map(|at| at + 1),
        false => address.find(':'),
    };
    let (host, port) = match port_at {
        Some(at) => (&address[..at], Some(&address[at + 1..])),
        None => (address, None),
    };
    let odd = |byte: u8| byte.is_ascii_whitespace() || b"/@?#".contains(&byte);
    let closed = !is_ipv6 || (host.len() > 2 && host.ends_with(']'));
    if host.is_empty() || host.bytes().any(odd) || !closed {
        return Err(bad());
    }
    match port {
        None => Ok(format!("{host}:{DEFAULT_PORT}")),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(address.to_owned()),
        Some(_) => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let parse = |text: &str| {
            let addresses = Addresses::from(text);
            addresses.parse().map_err(|error| error.to_string())
        };
        let one = |text: &str| Ok(vec![text.to_owned()]);
        assert_eq!(parse("127.0.0.1:7411"), one("127.0.0.1:7411"));
        assert_eq!(parse("rrq://queue.example"), one("queue.example:7411"));
        assert_eq!(parse("rrq://[::1]:9/"), one("[::1]:9"));
        assert_eq!(parse("[::1]"), one("[::1]:7411"));
        let two = vec!["a:1".to_owned(), "b:7411".to_owned()];
        assert_eq!(parse("a:1, rrq://b"), Ok(two));
        for bad in [
            "", "a:", "a:0", "a:70000", ":1", "a b", "http://a", "[::1", "a:1,",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_list_is_one_address_after_the_other() {
        let three = Ok(["a:1", "b:7411", "c:2"].map(str::to_owned).to_vec());
        assert_eq!(Addresses::from(["a:1,b", "c:2"]).parse(), three);
        assert_eq!(
            Addresses::from(&["a:1", "b", "rrq://c:2"][..]).parse(),
            three
        );
        assert_eq!(Addresses::from(vec!["a:1", "b", "c:2"]).parse(), three);
        assert_eq!(
            ["a:1", "b", "c:2"]
                .into_iter()
                .collect::<Addresses>()
                .parse(),
            three
        );
        let none = Addresses::default().parse().expect_err("none was given");
        assert_eq!(none.code(), Code::BadArgument);
    }
}
