//! The comments of the contract: paragraphs, and lists of what a thing is called and what it means, by their indentation.

/// A piece of a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Sentences.
    Paragraph(String),
    /// What something is called as it was written, "" in a plain list; and what it means.
    Entry(String, String),
}

/// What is said of a thing as a whole, and of each of its arguments.
#[derive(Debug, Default, Clone)]
pub struct Prose {
    pub about: Vec<Piece>,
    pub arguments: Vec<(String, Vec<Piece>)>,
}

/// Longest name of an entry. What is longer is a sentence that happens to have two spaces in it.
const LONGEST_NAME: usize = 64;

impl Prose {
    /// Takes a comment apart, in which a line that begins with one of these names and a colon is about that argument.
    pub fn of(comment: &str, arguments: &[&str]) -> Self {
        let margin = comment.lines().skip(1).filter(|line| !line.trim().is_empty()).map(indentation).min();
        let mut prose = Self::default();
        let mut list_at = None;
        let mut after_blank = true;
        for (number, line) in comment.lines().enumerate() {
            let text = line.trim();
            if text.is_empty() {
                after_blank = true;
                continue;
            }
            let indent = if number == 0 { 0 } else { indentation(line) - margin.unwrap_or(0) };
            let about = text.split_once(':').filter(|(name, _)| indent == 0 && arguments.contains(name));
            if let Some((name, rest)) = about {
                prose.arguments.push((name.to_owned(), Vec::new()));
                list_at = None;
                prose.add_text(rest.trim(), true);
            } else if indent == 0 {
                // Back from the arguments to the whole.
                if after_blank && !prose.arguments.is_empty() {
                    prose.about.push(Piece::Paragraph(text.to_owned()));
                } else {
                    prose.add_text(text, after_blank || list_at.is_some());
                }
                list_at = None;
            } else if let Some(item) = text.strip_prefix("* ") {
                prose.place().push(Piece::Entry(String::new(), item.to_owned()));
                list_at = Some(indent);
            } else if let Some((name, meaning)) =
                entry(text).filter(|_| list_at.is_none_or(|at| indent <= at))
            {
                prose.place().push(Piece::Entry(name, meaning));
                list_at = Some(indent);
            } else {
                prose.add_text(text, false);
            }
            after_blank = false;
        }
        prose
    }

    fn place(&mut self) -> &mut Vec<Piece> {
        match self.arguments.last_mut() {
            Some((_, pieces)) => pieces,
            None => &mut self.about,
        }
    }

    fn add_text(&mut self, text: &str, is_new: bool) {
        let place = self.place();
        match place.last_mut() {
            Some(Piece::Paragraph(last) | Piece::Entry(_, last)) if !is_new => {
                let space = if last.is_empty() { "" } else { " " };
                last.push_str(space);
                last.push_str(text);
            }
            _ if text.is_empty() => {}
            _ => place.push(Piece::Paragraph(text.to_owned())),
        }
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// A name, or several, and what stands behind two spaces; or names with types that need no explanation.
fn entry(text: &str) -> Option<(String, String)> {
    if let Some((name, meaning)) = text.split_once("  ") {
        return (name.len() <= LONGEST_NAME).then(|| (name.to_owned(), meaning.trim_start().to_owned()));
    }
    let typed = |name: &str| {
        let word =
            |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        let type_of =
            |text: &str| !text.is_empty() && text.chars().all(|c| "ybnqiuxtdsoghva{}()".contains(c));
        name.trim().split_once(' ').is_some_and(|(name, signature)| word(name) && type_of(signature))
    };
    text.split(',').all(typed).then(|| (text.to_owned(), String::new()))
}

#[test]
fn lists_are_told_from_sentences() {
    let comment = "\n      Makes it.\n      More of it.\n\n      name: what it\n        is called.\n      options:\n        \
                   key s   the key\n                of it\n        mtu u, queue-length u\n        ports as   some\n    ";
    let prose = Prose::of(comment, &["name", "options"]);
    let paragraph = |text: &str| Piece::Paragraph(text.to_owned());
    let entry = |name: &str, text: &str| Piece::Entry(name.to_owned(), text.to_owned());
    assert_eq!(prose.about, [paragraph("Makes it. More of it.")]);
    assert_eq!(prose.arguments[0], ("name".to_owned(), vec![paragraph("what it is called.")]));
    let options =
        [entry("key s", "the key of it"), entry("mtu u, queue-length u", ""), entry("ports as", "some")];
    assert_eq!(prose.arguments[1], ("options".to_owned(), options.to_vec()));
}
