//! Text and actions: `{{`, `}}`, trim markers, comments, and the tokens inside an action.

use super::GoError;

/// A token inside an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name: a function, a keyword, `true`, `nil`.
    Word(String),
    /// `.name`, directly behind what it belongs to or at the start of an operand.
    Field(String),
    /// `$name` or `$`.
    Variable(String),
    /// A lone dot.
    Dot,
    /// A string, unquoted.
    Str(String),
    /// An integer or character constant.
    Int(i64),
    /// A floating-point constant.
    Float(f64),
    /// `|`
    Pipe,
    /// `:=`
    Declare,
    /// `=`
    Assign,
    /// `,`
    Comma,
    /// `(`
    Open,
    /// `)`
    Close,
    /// Blanks between operands; they separate `.a .b` from `.a.b`.
    Space,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// Text outside of actions, trimmed as the markers say.
    Text(String),
    /// An action and the line it starts on.
    Action(Vec<Token>, usize),
}

fn error(line: usize, detail: impl Into<String>) -> GoError {
    GoError::Parse { line, detail: detail.into() }
}

const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];

/// Cuts a template into text and actions.
pub(super) fn pieces(source: &str) -> Result<Vec<Piece>, GoError> {
    let mut out: Vec<Piece> = Vec::new();
    let mut rest = source;
    let mut line = 1;
    let mut trim_next = false;
    loop {
        let (text, action) = match rest.split_once("{{") {
            Some((text, action)) => (text, Some(action)),
            None => (rest, None),
        };
        let lines = text.matches('\n').count();
        let mut shown = text;
        if trim_next {
            shown = shown.trim_start_matches(BLANK);
        }
        let mut action_text = action;
        if let Some(a) = action
            && a.starts_with('-')
            && a[1..].starts_with(BLANK)
        {
            shown = shown.trim_end_matches(BLANK);
            action_text = Some(&a[1..]);
        }
        if !shown.is_empty() {
            out.push(Piece::Text(shown.to_owned()));
        }
        line += lines;
        let Some(mut action) = action_text else {
            return Ok(out);
        };
        let start = line;
        let blanks = action.len() - action.trim_start_matches(BLANK).len();
        if action[blanks..].starts_with("/*") {
            let Some(end) = action.find("*/") else {
                return Err(error(start, "unclosed comment"));
            };
            line += action[..end].matches('\n').count();
            action = &action[end + 2..];
            let trimmed = action.trim_start_matches(BLANK);
            if let Some(after) = trimmed.strip_prefix("-}}").filter(|_| trimmed.len() < action.len()) {
                trim_next = true;
                rest = after;
            } else if let Some(after) = action.strip_prefix("}}") {
                trim_next = false;
                rest = after;
            } else {
                return Err(error(start, "comment ends before closing delimiter"));
            }
            continue;
        }
        let (tokens, used, trims) = tokens(action, start)?;
        line += action[..used].matches('\n').count();
        rest = &action[used..];
        trim_next = trims;
        out.push(Piece::Action(tokens, start));
    }
}

/// The tokens of one action, the bytes up to and with its `}}`, and whether it ended in `-}}`.
fn tokens(action: &str, line: usize) -> Result<(Vec<Token>, usize, bool), GoError> {
    let mut out = Vec::new();
    let mut at = 0;
    let mut depth = 0_usize;
    loop {
        let rest = &action[at..];
        let Some(c) = rest.chars().next() else {
            return Err(error(line, "unclosed action"));
        };
        if rest.starts_with("}}") {
            if depth > 0 {
                return Err(error(line, "unclosed left paren"));
            }
            return Ok((out, at + 2, false));
        }
        if BLANK.contains(&c) {
            let blanks = rest.len() - rest.trim_start_matches(BLANK).len();
            at += blanks;
            if action[at..].starts_with("-}}") {
                if depth > 0 {
                    return Err(error(line, "unclosed left paren"));
                }
                return Ok((out, at + 3, true));
            }
            out.push(Token::Space);
            continue;
        }
        let (token, used) = match c {
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            '(' => {
                depth += 1;
                (Token::Open, 1)
            }
            ')' => {
                depth = depth.checked_sub(1).ok_or_else(|| error(line, "unexpected right paren"))?;
                (Token::Close, 1)
            }
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '=' => (Token::Assign, 1),
            '"' => quoted(rest, line)?,
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| error(line, "unterminated raw quoted string"))?;
                (Token::Str(rest[1..=end].to_owned()), end + 2)
            }
            '\'' => character(rest, line)?,
            '$' => {
                let name = word(&rest[1..]);
                (Token::Variable(format!("${name}")), 1 + name.len())
            }
            '.' if !rest[1..].starts_with(|d: char| d.is_ascii_digit()) => {
                let name = word(&rest[1..]);
                if name.is_empty() { (Token::Dot, 1) } else { (Token::Field(name.to_owned()), 1 + name.len()) }
            }
            c if c == '+' || c == '-' || c == '.' || c.is_ascii_digit() => number(rest, line)?,
            c if c == '_' || c.is_alphabetic() => {
                let name = word(rest);
                (Token::Word(name.to_owned()), name.len())
            }
            c => return Err(error(line, format!("unexpected {c:?} in an action"))),
        };
        out.push(token);
        at += used;
    }
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
    &text[..end]
}

fn number(text: &str, line: usize) -> Result<(Token, usize), GoError> {
    let end = text
        .char_indices()
        .find(|(n, c)| {
            let sign =
                (*c == '+' || *c == '-') && (*n == 0 || text[..*n].ends_with(['e', 'E']) && !text.starts_with("0x"));
            !(sign || *c == '.' || *c == '_' || c.is_ascii_alphanumeric())
        })
        .map_or(text.len(), |(n, _)| n);
    let raw = &text[..end];
    let bad = || error(line, format!("bad number syntax: {raw:?}"));
    let digits = raw.replace('_', "");
    let (negative, unsigned) = match digits.strip_prefix('-') {
        Some(u) => (true, u),
        None => (false, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let lower = unsigned.to_ascii_lowercase();
    let integer = if let Some(hex) = lower.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()
    } else if let Some(binary) = lower.strip_prefix("0b") {
        i64::from_str_radix(binary, 2).ok()
    } else if let Some(octal) = lower.strip_prefix("0o") {
        i64::from_str_radix(octal, 8).ok()
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) {
        i64::from_str_radix(&lower[1..], 8).ok()
    } else {
        lower.parse().ok()
    };
    if let Some(n) = integer {
        return Ok((Token::Int(if negative { -n } else { n }), end));
    }
    if !lower.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(bad());
    }
    let f: f64 = lower.parse().map_err(|_| bad())?;
    Ok((Token::Float(if negative { -f } else { f }), end))
}

fn quoted(text: &str, line: usize) -> Result<(Token, usize), GoError> {
    let mut out: Vec<u8> = Vec::new();
    let mut at = 1;
    loop {
        let rest = &text[at..];
        let unterminated = || error(line, "unterminated quoted string");
        let c = rest.chars().next().ok_or_else(unterminated)?;
        match c {
            '"' => {
                let s = String::from_utf8(out).map_err(|_| error(line, "a quoted string that is not UTF-8"))?;
                return Ok((Token::Str(s), at + 1));
            }
            '\n' => return Err(unterminated()),
            '\\' => {
                let (bytes, used) = escape(rest, line)?;
                out.extend(bytes);
                at += used;
            }
            c => {
                out.extend(c.to_string().bytes());
                at += c.len_utf8();
            }
        }
    }
}

fn character(text: &str, line: usize) -> Result<(Token, usize), GoError> {
    let bad = || error(line, "malformed character constant");
    let inner = &text[1..];
    let c = inner.chars().next().ok_or_else(bad)?;
    let (value, used) = if c == '\\' {
        let (bytes, used) = escape(inner, line)?;
        let s = String::from_utf8(bytes).map_err(|_| bad())?;
        (s.chars().next().ok_or_else(bad)?, used)
    } else {
        (c, c.len_utf8())
    };
    if !inner[used..].starts_with('\'') {
        return Err(bad());
    }
    Ok((Token::Int(i64::from(value as u32)), used + 2))
}

/// One escape sequence of a Go string (`strconv.Unquote`), which starts with a backslash.
fn escape(text: &str, line: usize) -> Result<(Vec<u8>, usize), GoError> {
    let bad = || error(line, "invalid escape in a quoted string");
    let c = text[1..].chars().next().ok_or_else(bad)?;
    let simple = match c {
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(b'\n'),
        'r' => Some(b'\r'),
        't' => Some(b'\t'),
        'v' => Some(11),
        '\\' => Some(b'\\'),
        '"' => Some(b'"'),
        '\'' => Some(b'\''),
        _ => None,
    };
    if let Some(b) = simple {
        return Ok((vec![b], 2));
    }
    let (digits, radix, skip) = match c {
        'x' => (2, 16, 2),
        'u' => (4, 16, 2),
        'U' => (8, 16, 2),
        '0'..='7' => (3, 8, 1),
        _ => return Err(bad()),
    };
    let code = text.get(skip..skip + digits).and_then(|d| u32::from_str_radix(d, radix).ok()).ok_or_else(bad)?;
    let bytes = if matches!(c, 'u' | 'U') {
        char::from_u32(code).ok_or_else(bad)?.to_string().into_bytes()
    } else {
        vec![u8::try_from(code).map_err(|_| bad())?]
    };
    Ok((bytes, skip + digits))
}
