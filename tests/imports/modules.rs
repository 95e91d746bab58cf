//! A crate's modules, and what each imports.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// A module, in a file of its own or within another's.
pub(crate) struct Module {
    /// `["call", "look"]`; empty for the crate's root.
    pub(crate) path: Vec<String>,
    pub(crate) file: PathBuf,
    pub(crate) parent: Option<usize>,
    pub(crate) children: BTreeMap<String, usize>,
    /// What `use` brings in.
    pub(crate) uses: Vec<Use>,
    /// Paths in its code, outside of `use`.
    pub(crate) paths: Vec<Vec<String>>,
}

/// One leaf of a `use`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) path: Vec<String>,
    /// The name that it brings into scope; `*` for a glob.
    pub(crate) name: String,
}

/// Modules; the first is the root.
pub(crate) struct Crate(pub(crate) Vec<Module>);

impl Crate {
    /// Reads the crate with this root file.
    ///
    /// # Panics
    /// A file is missing, or is not Rust.
    pub(crate) fn read(root: &Path) -> Self {
        let folder = root.parent().expect("a file lies in a folder");
        let mut modules = Self(Vec::new());
        modules.add_file(Vec::new(), root.to_owned(), folder, None);
        modules
    }

    /// `folder` contains the module's own modules.
    fn add_file(&mut self, path: Vec<String>, file: PathBuf, folder: &Path, parent: Option<usize>) -> usize {
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.add(path, file, folder, parent, tokens)
    }

    fn add(
        &mut self,
        path: Vec<String>,
        file: PathBuf,
        folder: &Path,
        parent: Option<usize>,
        tokens: TokenStream,
    ) -> usize {
        let index = self.0.len();
        self.0.push(Module { path, file, parent, children: BTreeMap::new(), uses: Vec::new(), paths: Vec::new() });
        self.scan(index, folder, tokens);
        index
    }

    /// Looks through the code of a module, blocks included.
    fn scan(&mut self, module: usize, folder: &Path, tokens: TokenStream) {
        let mut code = Code { tokens: tokens.into_iter().collect(), at: 0 };
        let (mut is_test, mut given_path) = (false, None);
        while let Some(token) = code.next() {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    if let Some(attribute) = code.attribute() {
                        is_test |= is_for_tests(&attribute);
                        given_path = path_attribute(&attribute).or(given_path);
                        continue;
                    }
                }
                // The path in `pub(in a::b)` is not an import.
                TokenTree::Ident(word) if word == "pub" => {
                    code.group(Delimiter::Parenthesis);
                    continue;
                }
                TokenTree::Group(group) if is_test && group.delimiter() == Delimiter::Brace => {}
                _ if is_test => code.skip_item(),
                TokenTree::Ident(word) if word == "mod" => {
                    if let Some(name) = code.ident() {
                        self.submodule(module, folder, &name, given_path.take(), &mut code);
                    }
                }
                // `impl Trait + use<'_>` captures; it imports nothing.
                TokenTree::Ident(word) if word == "use" && !code.is_punct('<') => {
                    code.use_tree(&[], &mut self.0[module].uses);
                }
                TokenTree::Ident(word) => {
                    let mut path = vec![word.to_string()];
                    while let Some(next) = code.next_segment() {
                        path.push(next);
                    }
                    if path.len() > 1 {
                        self.0[module].paths.push(path);
                    }
                }
                TokenTree::Group(group) => self.scan(module, folder, group.stream()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            (is_test, given_path) = (false, None);
        }
    }

    fn submodule(&mut self, parent: usize, folder: &Path, name: &str, given: Option<String>, code: &mut Code) {
        let path = [&self.0[parent].path[..], &[name.to_owned()]].concat();
        let within = folder.join(name);
        let child = match code.group(Delimiter::Brace) {
            Some(body) => self.add(path, self.0[parent].file.clone(), &within, Some(parent), body),
            None => {
                let beside = self.0[parent].file.with_file_name(given.as_deref().unwrap_or_default());
                let candidates = [folder.join(format!("{name}.rs")), within.join("mod.rs")];
                let file = match given {
                    Some(_) => beside,
                    None => candidates.into_iter().find(|file| file.is_file()).unwrap_or_else(|| {
                        panic!("{}: there is no file of the module {name}", self.0[parent].file.display())
                    }),
                };
                self.add_file(path, file, &within, Some(parent))
            }
        };
        self.0[parent].children.insert(name.to_owned(), child);
    }
}

/// Tokens, read from front to back.
struct Code {
    tokens: Vec<TokenTree>,
    at: usize,
}

impl Code {
    fn next(&mut self) -> Option<TokenTree> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn is_punct(&self, mark: char) -> bool {
        matches!(self.tokens.get(self.at), Some(TokenTree::Punct(punct)) if punct.as_char() == mark)
    }

    fn ident(&mut self) -> Option<String> {
        let Some(TokenTree::Ident(word)) = self.tokens.get(self.at) else { return None };
        self.at += 1;
        Some(word.to_string())
    }

    fn group(&mut self, delimiter: Delimiter) -> Option<TokenStream> {
        match self.tokens.get(self.at) {
            Some(TokenTree::Group(group)) if group.delimiter() == delimiter => {
                self.at += 1;
                Some(group.stream())
            }
            _ => None,
        }
    }

    fn colons(&mut self) -> bool {
        let are_there = matches!(self.tokens.get(self.at), Some(TokenTree::Punct(first))
            if first.as_char() == ':' && first.spacing() == Spacing::Joint)
            && matches!(self.tokens.get(self.at + 1), Some(TokenTree::Punct(second)) if second.as_char() == ':');
        self.at += if are_there { 2 } else { 0 };
        are_there
    }

    /// After a `#`: the text in its brackets, without spaces.
    fn attribute(&mut self) -> Option<String> {
        self.at += usize::from(self.is_punct('!'));
        let text = self.group(Delimiter::Bracket)?.to_string();
        Some(text.split_whitespace().collect())
    }

    /// The next `::name` of a path. Generic arguments end the path.
    fn next_segment(&mut self) -> Option<String> {
        let before = self.at;
        let segment = if self.colons() { self.ident() } else { None };
        if segment.is_none() {
            self.at = before;
        }
        segment
    }

    /// Skips to the end of an item or a field whose first token was taken.
    fn skip_item(&mut self) {
        while let Some(token) = self.next() {
            match token {
                TokenTree::Punct(punct) if matches!(punct.as_char(), ';' | ',') => return,
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return,
                _ => {}
            }
        }
    }

    /// Reads one tree of a `use`, whose paths begin with `prefix`.
    fn use_tree(&mut self, prefix: &[String], uses: &mut Vec<Use>) {
        let mut path = prefix.to_vec();
        if self.colons() && path.is_empty() {
            // Another crate's.
            path.push(String::new());
        }
        loop {
            if let Some(group) = self.group(Delimiter::Brace) {
                let mut inner = Code { tokens: group.into_iter().collect(), at: 0 };
                while inner.at < inner.tokens.len() {
                    inner.use_tree(&path, uses);
                    inner.at += usize::from(inner.is_punct(','));
                }
                return;
            }
            if self.is_punct('*') {
                self.at += 1;
                return uses.push(Use { path, name: "*".to_owned() });
            }
            // Not an import that is known here: continue with the next token.
            let Some(word) = self.ident() else { return self.at += 1 };
            path.push(word);
            if self.colons() {
                continue;
            }
            // `a::{self}` is `a`.
            if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                path.pop();
            }
            let mut name = path.last().cloned().unwrap_or_default();
            if matches!(self.tokens.get(self.at), Some(TokenTree::Ident(word)) if word == "as") {
                self.at += 1;
                name = self.ident().unwrap_or_default();
            }
            return uses.push(Use { path, name });
        }
    }
}

/// Whether an attribute limits its item to tests.
fn is_for_tests(attribute: &str) -> bool {
    attribute == "cfg(test)" || attribute.starts_with("cfg(all(test,")
}

/// The `x/y.rs` in `path = "x/y.rs"`.
fn path_attribute(attribute: &str) -> Option<String> {
    Some(attribute.strip_prefix("path=\"")?.strip_suffix('"')?.to_owned())
}
