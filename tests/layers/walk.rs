//! Reads one file of Rust as tokens and gathers what the rules ask about.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

use super::{module_of, UNSAFE, UNSAFE_IN};

/// A path as it is written in the source, with what is needed to judge it.
pub struct Name {
    pub path: Vec<String>,
    pub line: usize,
    /// The module it stands in.
    pub module: Vec<String>,
    pub in_use: bool,
    pub in_test: bool,
}

impl Name {
    /// The path from the crate root, if it begins with `crate` or `super`.
    pub fn absolute(&self) -> Option<Vec<String>> {
        match self.path.first().map(String::as_str) {
            Some("crate") => Some(self.path[1..].to_vec()),
            Some("super") | Some("self") => {
                let mut module = self.module.clone();
                let mut rest = self.path.as_slice();
                while let Some((first, tail)) = rest.split_first() {
                    match first.as_str() {
                        "self" => {}
                        "super" => drop(module.pop()),
                        _ => break,
                    }
                    rest = tail;
                }
                module.extend(rest.iter().cloned());
                Some(module)
            }
            _ => None,
        }
    }
}

/// What one file holds, gathered in one pass over its tokens.
#[derive(Default)]
pub struct Walk {
    path: String,
    module: Vec<String>,
    pub names: Vec<Name>,
    /// Modules that this file declares.
    pub declared: Vec<(usize, Vec<String>)>,
    /// Those of them that are `#[cfg(test)]` and lie in a file of their own.
    pub test_modules: Vec<Vec<String>>,
    /// The same, named by `#[path = "..."]`.
    pub test_files: Vec<String>,
    /// First and last line of each `#[cfg(test)]` or `#[test]` item.
    pub test_spans: Vec<(usize, usize)>,
    pub functions: Vec<(String, usize, usize)>,
    pub findings: Vec<(usize, String)>,
    pub whole_file_is_test: bool,
}

impl Walk {
    pub fn of(path: &str, tokens: TokenStream) -> Self {
        let mut walk = Self { path: path.to_owned(), module: module_of(path), ..Self::default() };
        walk.items(&tokens.into_iter().collect::<Vec<_>>(), false);
        let allowed = UNSAFE_IN.iter().any(|(place, _why)| path.starts_with(place));
        walk.findings.retain(|(_, what)| !(allowed && what == UNSAFE));
        walk
    }

    fn items(&mut self, tokens: &[TokenTree], in_test: bool) {
        let mut at = 0;
        while at < tokens.len() {
            if let [dot, TokenTree::Ident(method), TokenTree::Group(arguments), ..] = &tokens[at..] {
                if is_punct(Some(dot), '.') && method == "elapsed" && arguments.stream().is_empty() {
                    self.name(vec![".elapsed()".into()], line_of(dot), false, in_test);
                }
            }
            at += self.item(&tokens[at..], in_test);
        }
    }

    /// Takes what stands at the front of `tokens`; returns how many it took.
    fn item(&mut self, tokens: &[TokenTree], in_test: bool) -> usize {
        if let Some((length, inner, attribute)) = attribute(tokens) {
            self.items(&attribute, in_test);
            self.path_attribute(&attribute, in_test);
            if !is_test(&attribute) || in_test {
                return length;
            }
            if inner {
                self.whole_file_is_test |= self.test_spans.is_empty() && self.functions.is_empty();
                return length;
            }
            let end = length + item_end(&tokens[length..]);
            self.test_item(&tokens[length..end]);
            self.test_spans.push((line_of(&tokens[0]), last_line_of(&tokens[end - 1])));
            return end;
        }
        match &tokens[0] {
            TokenTree::Ident(word) if word == "mod" => self.module(tokens, in_test),
            TokenTree::Ident(word) if word == "fn" => {
                if !in_test {
                    self.function(tokens);
                }
                1
            }
            TokenTree::Ident(word) if word == "use" => {
                let end = item_end(tokens);
                self.paths(&tokens[1..end], &[], true, in_test);
                end
            }
            TokenTree::Ident(word) if word == "unsafe" => {
                self.findings.push((line_of(&tokens[0]), UNSAFE.into()));
                1
            }
            TokenTree::Ident(word) if word == "include" && is_punct(tokens.get(1), '!') => {
                self.findings.push((line_of(&tokens[0]), "include! hides where code lies".into()));
                1
            }
            TokenTree::Ident(_) => self.path(tokens, &[], false, in_test),
            TokenTree::Group(group) => {
                self.items(&group.stream().into_iter().collect::<Vec<_>>(), in_test);
                1
            }
            _ => 1,
        }
    }

    /// `#[path = "x_tests.rs"]` is for tests beside their file; anything else hides where a module lies.
    fn path_attribute(&mut self, attribute: &[TokenTree], in_test: bool) {
        let [TokenTree::Ident(name), _, TokenTree::Literal(file)] = attribute else { return };
        if name != "path" {
            return;
        }
        let text = file.to_string();
        let file_name = text.trim_matches('"');
        if in_test && !file_name.contains(['/', '\\']) {
            let folder = self.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
            self.test_files.push(format!("{folder}{file_name}"));
        } else {
            self.findings.push((file.span().start().line, "#[path] hides where a module lies".into()));
        }
    }

    fn test_item(&mut self, tokens: &[TokenTree]) {
        let name = tokens.windows(3).find_map(|three| match three {
            [TokenTree::Ident(word), TokenTree::Ident(name), end] if word == "mod" && is_punct(Some(end), ';') => {
                Some(name.to_string())
            }
            _ => None,
        });
        if let Some(name) = name {
            self.test_modules.push([self.module.as_slice(), &[name]].concat());
        }
        self.items(tokens, true);
    }

    fn module(&mut self, tokens: &[TokenTree], in_test: bool) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(1) else { return 1 };
        self.module.push(name.to_string());
        let taken = match tokens.get(2) {
            Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                self.items(&body.stream().into_iter().collect::<Vec<_>>(), in_test);
                3
            }
            _ => 2,
        };
        if taken == 2 && !in_test {
            self.declared.push((line_of(&tokens[0]), self.module.clone()));
        }
        self.module.pop();
        taken
    }

    /// Notes the length of a function; its tokens are walked afterwards as any others.
    fn function(&mut self, tokens: &[TokenTree]) {
        let Some(TokenTree::Ident(name)) = tokens.get(1) else { return };
        for token in &tokens[2..] {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ';' => return,
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    self.functions.push((name.to_string(), line_of(&tokens[0]), last_line_of(token)));
                    return;
                }
                _ => {}
            }
        }
    }

    /// Takes the path at the front (an identifier) and everything that hangs on it by `::`.
    fn path(&mut self, tokens: &[TokenTree], prefix: &[String], in_use: bool, in_test: bool) -> usize {
        let mut path = prefix.to_vec();
        let mut at = 0;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(word)) => path.push(word.to_string()),
                Some(TokenTree::Punct(star)) if star.as_char() == '*' && at > 0 => path.push("*".into()),
                Some(TokenTree::Group(tree)) if tree.delimiter() == Delimiter::Brace && at > 0 => {
                    let inner: Vec<TokenTree> = tree.stream().into_iter().collect();
                    self.paths(&inner, &path, in_use, in_test);
                    return at + 1;
                }
                _ => break,
            }
            at += 1;
            let joined = matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':' && p.spacing() == Spacing::Joint);
            if !joined || !is_punct(tokens.get(at + 1), ':') {
                break;
            }
            at += 2;
        }
        if let ([.., last], true, Some(TokenTree::Group(_))) =
            (&path[..], is_punct(tokens.get(at), '!'), tokens.get(at + 1))
        {
            self.name(vec![format!("{last}!")], line_of(&tokens[0]), in_use, in_test);
        }
        self.name(path, line_of(&tokens[0]), in_use, in_test);
        at.max(1)
    }

    /// The branches of a use tree: `a::{b, c as d, e::{f, self}}`, all behind `prefix`.
    fn paths(&mut self, tokens: &[TokenTree], prefix: &[String], in_use: bool, in_test: bool) {
        for branch in tokens.split(|token| is_punct(Some(token), ',')) {
            let start = branch.iter().position(|token| !is_punct(Some(token), ':')).unwrap_or(0);
            match branch.get(start) {
                Some(TokenTree::Ident(_)) => drop(self.path(&branch[start..], prefix, in_use, in_test)),
                Some(TokenTree::Group(tree)) => {
                    self.paths(&tree.stream().into_iter().collect::<Vec<_>>(), prefix, in_use, in_test);
                }
                Some(star) => self.name([prefix, &["*".into()]].concat(), line_of(star), in_use, in_test),
                None => {}
            }
        }
    }

    fn name(&mut self, mut path: Vec<String>, line: usize, in_use: bool, in_test: bool) {
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        self.names.push(Name { path, line, module: self.module.clone(), in_use, in_test });
    }
}

/// `#[...]` or `#![...]` at the front: how many tokens, whether it is an inner one, and what stands in it.
fn attribute(tokens: &[TokenTree]) -> Option<(usize, bool, Vec<TokenTree>)> {
    if !is_punct(tokens.first(), '#') {
        return None;
    }
    let inner = is_punct(tokens.get(1), '!');
    let at = if inner { 2 } else { 1 };
    match tokens.get(at) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Some((at + 1, inner, group.stream().into_iter().collect()))
        }
        _ => None,
    }
}

/// `cfg(test)`, `cfg(all(test, ...))`, `test` and `tokio::test`: the item behind it is built for tests alone.
fn is_test(attribute: &[TokenTree]) -> bool {
    let word = |token: &TokenTree, text: &str| matches!(token, TokenTree::Ident(word) if word == text);
    match attribute {
        [first, TokenTree::Group(condition)] if word(first, "cfg") => {
            let condition: Vec<TokenTree> = condition.stream().into_iter().collect();
            match condition.as_slice() {
                [only] => word(only, "test"),
                [all, TokenTree::Group(list)] if word(all, "all") => list
                    .stream()
                    .into_iter()
                    .collect::<Vec<_>>()
                    .split(|token| is_punct(Some(token), ','))
                    .any(|each| matches!(each, [only] if word(only, "test"))),
                _ => false,
            }
        }
        [only] => word(only, "test"),
        [root, _, _, last, ..] => word(root, "tokio") && word(last, "test"),
        _ => false,
    }
}

/// How many tokens the item at the front has: to its `;`, or to its body.
fn item_end(tokens: &[TokenTree]) -> usize {
    let is_use = tokens.iter().take(4).any(|token| matches!(token, TokenTree::Ident(word) if word == "use"));
    for (at, token) in tokens.iter().enumerate() {
        let body = matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
        if is_punct(Some(token), ';') || (body && !is_use) {
            return at + 1;
        }
    }
    tokens.len()
}

fn is_punct(token: Option<&TokenTree>, what: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == what)
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}

fn last_line_of(token: &TokenTree) -> usize {
    token.span().end().line
}
