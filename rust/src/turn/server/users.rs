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
    /// Whoever knows it can make names that end (`turn/credentials.rs`).
    pub secret: Option<String>,
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
    /// `unix` is the time in seconds since 1970. `None`: there is nobody of that name, or not any more.
    pub fn find(&self, name: &[u8], realm: &str, unix: u64) -> Option<Account> {
        let text = std::str::from_utf8(name).ok()?;
        if let Some(password) = self.listed.get(text) {
            return Some(Account { key: long_term_key(name, realm, password), owner: Owner::Listed(text.into()) });
        }
        if text == INTRODUCTION_NAME && !self.introduction_peers.is_empty() {
            let key = long_term_key(name, realm, INTRODUCTION_PASSWORD);
            return Some(Account { key, owner: Owner::Introduction });
        }
        let secret = self.secret.as_ref()?;
        let (_, whom) = read_limited_name(text).filter(|(expires, _)| *expires > unix)?;
        let key = long_term_key(name, realm, &limited_password(secret, name));
        Some(Account { key, owner: Owner::Limited(whom.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_end_do() {
        let users = Users { secret: Some("s".into()), ..Users::default() };
        let found = users.find(b"100:node", "r", 99).unwrap();
        assert_eq!(found.owner, Owner::Limited("node".into()));
        assert_eq!(found.key, long_term_key(b"100:node", "r", &limited_password("s", b"100:node")));
        assert_eq!(users.find(b"100:node", "r", 100), None);
        assert_eq!(users.find(b"node", "r", 0), None);
        assert_eq!(users.find(b"\xff", "r", 0), None);
    }

    #[test]
    fn the_introduction_name_leads_somewhere_or_is_unknown() {
        let users = Users::default();
        assert_eq!(users.find(b"keynet", "r", 0), None);
        let users = Users { introduction_peers: vec!["192.0.2.1:5".parse().unwrap()], ..users };
        assert_eq!(users.find(b"keynet", "r", 0).unwrap().owner, Owner::Introduction);
        assert_eq!(users.find(b"other", "r", 0), None);
    }
}
