//! Whose credentials a server takes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::turn::credentials::{
    limited_password, long_term_key, read_limited_name, Key, INTRODUCTION_NAME, INTRODUCTION_PASSWORD,
};

/// The accounts of a server.
#[derive(Clone, Default)]
pub struct Users {
    /// Name and password.
    pub listed: HashMap<String, String>,
    /// Whoever knows one of them can make names that end (`turn/credentials.rs`): the one in use, and those before it whose names
    /// have not ended yet.
    pub secrets: Vec<String>,
    /// The peers that the introduction credentials lead to; none: they are not taken.
    pub introduction_peers: Vec<SocketAddr>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub key: Key,
    /// Who is charged: the name, or of a name that ends whom it is for.
    pub owner: Owner,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    Listed(Arc<str>),
    Limited(Arc<str>),
    Introduction,
}

impl Users {
    /// `unix` is the time in seconds since 1970; `has_signed` says of a key whether it is that of whoever claims the name.
    ///
    /// `None`: there is nobody of that name, or not any more, or it is somebody else who claims it.
    pub fn find(&self, name: &[u8], realm: &str, unix: u64, has_signed: impl Fn(&Key) -> bool) -> Option<Account> {
        let (owner, passwords) = match self.claimed(name, unix) {
            Some(found) => found,
            // a name that does not exist costs as long as a wrong password
            None => {
                let _ = has_signed(&NO_KEY);
                return None;
            }
        };
        let keys = passwords.iter().map(|password| long_term_key(name, realm, password));
        keys.filter(has_signed).map(|key| Account { key, owner: owner.clone() }).next()
    }

    /// Whom a name is of, and what may be its password.
    fn claimed(&self, name: &[u8], unix: u64) -> Option<(Owner, Vec<String>)> {
        let text = std::str::from_utf8(name).ok()?;
        if let Some(password) = self.listed.get(text) {
            return Some((Owner::Listed(text.into()), vec![password.clone()]));
        }
        if text == INTRODUCTION_NAME && !self.introduction_peers.is_empty() {
            return Some((Owner::Introduction, vec![INTRODUCTION_PASSWORD.to_owned()]));
        }
        let (_, whom) = read_limited_name(text).filter(|(expires, _)| *expires > unix)?;
        let passwords = self.secrets.iter().map(|secret| limited_password(secret, name)).collect();
        Some((Owner::Limited(whom.into()), passwords))
    }
}

/// Nobody's.
const NO_KEY: Key = [0; 16];

#[cfg(test)]
mod tests {
    use super::*;

    fn find(users: &Users, name: &[u8], password: &str, unix: u64) -> Option<Account> {
        let signed = long_term_key(name, "r", password);
        users.find(name, "r", unix, |key| *key == signed)
    }

    #[test]
    fn names_that_end_do() {
        let users = Users { secrets: vec!["s".into()], ..Users::default() };
        let password = limited_password("s", b"100:node");
        let found = find(&users, b"100:node", &password, 99).unwrap();
        assert_eq!(found.owner, Owner::Limited("node".into()));
        assert_eq!(found.key, long_term_key(b"100:node", "r", &password));
        assert_eq!(find(&users, b"100:node", &password, 100), None);
        assert_eq!(find(&users, b"100:node", "s", 99), None);
        assert_eq!(find(&users, b"node", &limited_password("s", b"node"), 0), None);
        assert_eq!(find(&users, b"\xff", &limited_password("s", b"\xff"), 0), None);
    }

    #[test]
    fn names_of_the_secret_before_are_good_as_long_as_it_is_kept() {
        let mut users = Users { secrets: vec!["new".into(), "old".into()], ..Users::default() };
        for secret in ["new", "old"] {
            assert!(find(&users, b"100:node", &limited_password(secret, b"100:node"), 0).is_some(), "{secret}");
        }
        users.secrets.truncate(1);
        assert!(find(&users, b"100:node", &limited_password("old", b"100:node"), 0).is_none());
        assert!(find(&Users::default(), b"100:node", &limited_password("", b"100:node"), 0).is_none());
    }

    #[test]
    fn the_introduction_name_leads_somewhere_or_is_unknown() {
        let users = Users::default();
        assert_eq!(find(&users, b"keynet", "keynet", 0), None);
        let users = Users { introduction_peers: vec!["192.0.2.1:5".parse().unwrap()], ..users };
        assert_eq!(find(&users, b"keynet", "keynet", 0).unwrap().owner, Owner::Introduction);
        assert_eq!(find(&users, b"keynet", "other", 0), None);
        assert_eq!(find(&users, b"other", "keynet", 0), None);
    }
}
