//! A pickle machine for tensors and plain containers, and nothing else.
//!
//! A pickle is a program. This machine runs the opcodes that PyTorch writes, knows the few globals that a state
//! dict needs, and refuses every other by name: no code of the file is ever executed. Objects live in an arena and
//! refer to each other by number, so that no nesting or cycle in a hostile file can exhaust the stack.

use std::fmt;
use std::sync::Arc;

use safetensors::Dtype;

/// Values that calls may copy out of other objects, all together: some for each of a million tensors. A pickle can
/// name one long list again and again, each time in a few bytes.
const MAX_COPIED: usize = 1 << 22;

/// A value on the stack: a scalar, or the number of an object in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float,
    Global(Global),
    Object(usize),
}

/// The globals a file may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`, and `v3`, which has the element type as an argument.
    RebuildTensor {
        typed: bool,
    },
    RebuildParameter,
    /// A typed storage class, or the untyped one.
    Storage(Option<Dtype>),
    Dtype(Dtype),
    Size,
    Device,
}

/// An object of the arena.
#[derive(Debug)]
pub(super) enum Object {
    Text(Arc<str>),
    /// An integer of more than eight bytes.
    Long(Vec<u8>),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Storage(Storage),
    Tensor(Tensor),
}

/// A storage: a run of elements in the file, by key.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) key: Arc<str>,
    pub(super) dtype: Option<Dtype>,
    /// Elements (bytes, where untyped).
    pub(super) len: u64,
    /// Where a view of another storage begins, in elements, and its length.
    pub(super) view: Option<(u64, u64)>,
}

/// A tensor: a strided view of a storage. Offset and strides count elements.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    pub(super) dtype: Dtype,
    pub(super) offset: u64,
    pub(super) dims: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// Why a pickle was refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The file itself could not be read.
    Io(std::io::Error),
    /// It wants something outside the allow-list, named here.
    Foreign(String),
    /// It is no valid pickle.
    Damaged(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Io(e) => write!(f, "{e}"),
            Refusal::Foreign(what) => {
                write!(f, "its pickle asks for {what}, which is not a tensor or a plain container")
            }
            Refusal::Damaged(why) => write!(f, "its pickle is damaged: {why}"),
        }
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Damaged(why.into()))
}

/// Bytes of a pickle, one after another.
pub(super) trait Bytes {
    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Result<Vec<u8>, Refusal>;

    /// The next byte.
    fn byte(&mut self) -> Result<u8, Refusal>;
}

impl Bytes for &[u8] {
    fn take(&mut self, n: usize) -> Result<Vec<u8>, Refusal> {
        match self.split_at_checked(n) {
            Some((head, rest)) => {
                *self = rest;
                Ok(head.to_vec())
            }
            None => damaged("it ends in the middle"),
        }
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        match self.split_first() {
            Some((&b, rest)) => {
                *self = rest;
                Ok(b)
            }
            None => damaged("it ends in the middle"),
        }
    }
}

/// The arena after a pickle has run.
#[derive(Debug, Default)]
pub(super) struct Machine {
    objects: Vec<Object>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    copied: usize,
}

/// Runs one pickle to its STOP and gives its result with the arena that holds its objects.
pub(super) fn run(input: &mut impl Bytes) -> Result<(Value, Machine), Refusal> {
    let mut machine = Machine::default();
    while machine.step(input)? {}
    let result = machine.pop()?;
    Ok((result, machine))
}

impl Machine {
    /// The object of a value.
    pub(super) fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(i) => self.objects.get(i),
            _ => None,
        }
    }

    /// All storages that were named.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.objects.iter().filter_map(|o| match o {
            Object::Storage(s) => Some(s),
            _ => None,
        })
    }

    /// The text of a value.
    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.object(value) {
            Some(Object::Text(s)) => Some(s),
            _ => None,
        }
    }

    /// The items of a tuple or a list.
    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match self.object(value) {
            Some(Object::Tuple(v) | Object::List(v)) => Some(v),
            _ => None,
        }
    }

    fn step(&mut self, input: &mut impl Bytes) -> Result<bool, Refusal> {
        match input.byte()? {
            0x80 => match input.byte()? {
                2 => {}
                version => return damaged(format!("it has protocol {version}, PyTorch writes 2")),
            },
            b'.' => return Ok(false),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => {
                let x = input.byte()?;
                self.stack.push(Value::Int(x.into()));
            }
            b'M' => {
                let x = u16::from_le_bytes(array(input)?);
                self.stack.push(Value::Int(x.into()));
            }
            b'J' => {
                let x = i32::from_le_bytes(array(input)?);
                self.stack.push(Value::Int(x.into()));
            }
            0x8a => {
                let n = input.byte()? as usize;
                let bytes = input.take(n)?;
                let long = self.long(bytes);
                self.stack.push(long);
            }
            b'G' => {
                input.take(8)?;
                self.stack.push(Value::Float);
            }
            b'X' => {
                let n = u32::from_le_bytes(array(input)?) as usize;
                self.push_text(input.take(n)?)?;
            }
            b'U' => {
                let n = input.byte()? as usize;
                self.push_text(input.take(n)?)?;
            }
            b'c' => {
                let (module, name) = (line(input)?, line(input)?);
                self.stack.push(Value::Global(global(&module, &name)?));
            }
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items));
            }
            op @ 0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let Some(start) = self.stack.len().checked_sub(n) else { return damaged("its stack is too short") };
                let items = self.stack.split_off(start);
                self.push(Object::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.list()?.extend(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.since_mark()?;
                let (pairs, rest) = items.as_chunks::<2>();
                if !rest.is_empty() {
                    return damaged("a dictionary has a key without a value");
                }
                self.dict()?.extend(pairs.iter().map(|&[k, v]| (k, v)));
            }
            b'q' => {
                let i = input.byte()? as usize;
                self.remember(i)?;
            }
            b'r' => {
                let i = u32::from_le_bytes(array(input)?) as usize;
                self.remember(i)?;
            }
            b'h' => {
                let i = input.byte()? as usize;
                self.recall(i)?;
            }
            b'j' => {
                let i = u32::from_le_bytes(array(input)?) as usize;
                self.recall(i)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Object::Storage(storage));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = self.call(function, arguments)?;
                self.stack.push(result);
            }
            b'b' => {
                self.pop()?;
                let target = self.stack.last().copied();
                if !matches!(target.and_then(|t| self.object(t)), Some(Object::Dict(_) | Object::Tensor(_))) {
                    return Err(Refusal::Foreign("an object with state of its own".to_string()));
                }
            }
            op => return Err(Refusal::Foreign(format!("opcode 0x{op:02x}"))),
        }
        Ok(true)
    }

    fn push(&mut self, object: Object) {
        self.objects.push(object);
        self.stack.push(Value::Object(self.objects.len() - 1));
    }

    fn push_text(&mut self, bytes: Vec<u8>) -> Result<(), Refusal> {
        match String::from_utf8(bytes) {
            Ok(s) => {
                self.push(Object::Text(s.into()));
                Ok(())
            }
            Err(_) => damaged("a text is not UTF-8"),
        }
    }

    fn long(&mut self, bytes: Vec<u8>) -> Value {
        if bytes.len() > 8 {
            self.objects.push(Object::Long(bytes));
            return Value::Object(self.objects.len() - 1);
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xFF } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        Value::Int(i64::from_le_bytes(wide))
    }

    fn pop(&mut self) -> Result<Value, Refusal> {
        if self.marks.last().is_some_and(|&m| m >= self.stack.len()) {
            return damaged("it takes more than there is since the last mark");
        }
        self.stack.pop().map_or_else(|| damaged("its stack is empty"), Ok)
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, Refusal> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => damaged("it has no mark"),
        }
    }

    fn top(&mut self) -> Option<&mut Object> {
        match self.stack.last() {
            Some(&Value::Object(i)) => self.objects.get_mut(i),
            _ => None,
        }
    }

    fn list(&mut self) -> Result<&mut Vec<Value>, Refusal> {
        match self.top() {
            Some(Object::List(v)) => Ok(v),
            _ => damaged("it appends to what is no list"),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Value, Value)>, Refusal> {
        match self.top() {
            Some(Object::Dict(v)) => Ok(v),
            _ => damaged("it sets items of what is no dictionary"),
        }
    }

    fn remember(&mut self, i: usize) -> Result<(), Refusal> {
        let value = self.stack.last().copied();
        // Pickles number their memo upwards; a far number would only reserve memory.
        if value.is_none() || i > self.memo.len() + (1 << 20) {
            return damaged(format!("memo {i} cannot be"));
        }
        if i >= self.memo.len() {
            self.memo.resize(i + 1, None);
        }
        self.memo[i] = value;
        Ok(())
    }

    fn recall(&mut self, i: usize) -> Result<(), Refusal> {
        match self.memo.get(i).copied().flatten() {
            Some(value) => {
                self.stack.push(value);
                Ok(())
            }
            None => damaged(format!("memo {i} is not set")),
        }
    }

    /// `('storage', class, key, location, elements[, view])`
    fn storage(&self, id: Value) -> Result<Storage, Refusal> {
        let Some([kind, class, key, _location, len, rest @ ..]) = self.items(id) else {
            return damaged("a storage has too few parts");
        };
        if self.text(*kind) != Some("storage") {
            return Err(Refusal::Foreign(format!("a persistent object of kind {:?}", self.text(*kind).unwrap_or("?"))));
        }
        let (Value::Global(Global::Storage(dtype)), Some(Object::Text(key)), Some(len)) =
            (*class, self.object(*key), unsigned(*len))
        else {
            return damaged("a storage's parts have wrong types");
        };
        let view = match rest.first().and_then(|&v| self.items(v)) {
            Some([_key, offset, size]) => match (unsigned(*offset), unsigned(*size)) {
                (Some(offset), Some(size)) => Some((offset, size)),
                _ => return damaged("a storage view's parts have wrong types"),
            },
            Some(_) => return damaged("a storage view has too few parts"),
            None => None,
        };
        Ok(Storage { key: key.clone(), dtype, len, view })
    }

    /// Counts the items of a value that is about to be copied.
    fn copy(&mut self, value: Value) -> Result<(), Refusal> {
        self.copied += self.items(value).map_or(0, <[Value]>::len);
        if self.copied > MAX_COPIED {
            return damaged(format!("it repeats lists of more than {MAX_COPIED} values"));
        }
        Ok(())
    }

    fn call(&mut self, function: Value, arguments: Value) -> Result<Value, Refusal> {
        let Value::Global(function) = function else { return damaged("it calls what is no function") };
        // The functions below have at most seven arguments; what follows them is not looked at.
        let Some(arguments) = self.items(arguments).map(|all| all.iter().take(16).copied().collect::<Vec<_>>()) else {
            return damaged("the arguments of a call are no tuple");
        };
        let object = match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::OrderedDict, [pairs]) => {
                self.copy(*pairs)?;
                let pair = |&p: &Value| match self.items(p) {
                    Some(&[k, v]) => Some((k, v)),
                    _ => None,
                };
                match self.items(*pairs).and_then(|all| all.iter().map(pair).collect()) {
                    Some(all) => Object::Dict(all),
                    None => return damaged("an OrderedDict is not made of pairs"),
                }
            }
            (Global::RebuildTensor { typed }, [storage, offset, size, stride, _grad, _hooks, rest @ ..]) => {
                let dtype = match (typed, rest.first()) {
                    (true, Some(Value::Global(Global::Dtype(d)))) => Some(*d),
                    (true, _) => return damaged("a tensor has no element type"),
                    (false, _) => None,
                };
                self.copy(*size)?;
                self.copy(*stride)?;
                Object::Tensor(self.tensor(*storage, *offset, *size, *stride, dtype)?)
            }
            (Global::RebuildParameter, [tensor, ..]) => match self.object(*tensor) {
                Some(Object::Tensor(_)) => return Ok(*tensor),
                _ => return damaged("a parameter is no tensor"),
            },
            (Global::Size, [dims]) => {
                self.copy(*dims)?;
                Object::Tuple(self.items(*dims).unwrap_or_default().to_vec())
            }
            (Global::Device, _) => return Ok(Value::None),
            _ => return damaged(format!("a call of {function:?} has wrong arguments")),
        };
        self.objects.push(object);
        Ok(Value::Object(self.objects.len() - 1))
    }

    fn tensor(
        &self,
        storage: Value,
        offset: Value,
        size: Value,
        stride: Value,
        dtype: Option<Dtype>,
    ) -> Result<Tensor, Refusal> {
        let numbers = |v: Value| self.items(v)?.iter().map(|&x| unsigned(x)).collect::<Option<Vec<u64>>>();
        let Some(Object::Storage(storage)) = self.object(storage) else {
            return damaged("a tensor has no storage");
        };
        let (Some(offset), Some(dims), Some(strides)) = (unsigned(offset), numbers(size), numbers(stride)) else {
            return damaged("a tensor's size or stride is no list of numbers");
        };
        if dims.len() != strides.len() {
            return damaged("a tensor has more dimensions than strides");
        }
        match dtype.or(storage.dtype) {
            Some(dtype) => Ok(Tensor { storage: storage.clone(), dtype, offset, dims, strides }),
            None => damaged("a tensor's element type is not known"),
        }
    }
}

/// A non-negative number.
pub(super) fn unsigned(value: Value) -> Option<u64> {
    match value {
        Value::Int(i) => u64::try_from(i).ok(),
        _ => None,
    }
}

fn array<const N: usize>(input: &mut impl Bytes) -> Result<[u8; N], Refusal> {
    let mut out = [0; N];
    for b in &mut out {
        *b = input.byte()?;
    }
    Ok(out)
}

fn line(input: &mut impl Bytes) -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    loop {
        match input.byte()? {
            b'\n' => return String::from_utf8(bytes).or_else(|_| damaged("a name is not UTF-8")),
            b if bytes.len() < 512 => bytes.push(b),
            _ => return damaged("a name is too long"),
        }
    }
}

/// The allow-list.
fn global(module: &str, name: &str) -> Result<Global, Refusal> {
    let storage = |d| Ok(Global::Storage(Some(d)));
    let dtype = |d| Ok(Global::Dtype(d));
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor { typed: false }),
        ("torch._utils", "_rebuild_tensor_v3") => Ok(Global::RebuildTensor { typed: true }),
        ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
        ("torch", "Size") => Ok(Global::Size),
        ("torch", "device") => Ok(Global::Device),
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Ok(Global::Storage(None)),
        ("torch", "DoubleStorage") => storage(Dtype::F64),
        ("torch", "FloatStorage") => storage(Dtype::F32),
        ("torch", "HalfStorage") => storage(Dtype::F16),
        ("torch", "BFloat16Storage") => storage(Dtype::BF16),
        ("torch", "LongStorage") => storage(Dtype::I64),
        ("torch", "IntStorage") => storage(Dtype::I32),
        ("torch", "ShortStorage") => storage(Dtype::I16),
        ("torch", "CharStorage") => storage(Dtype::I8),
        ("torch", "ByteStorage") => storage(Dtype::U8),
        ("torch", "BoolStorage") => storage(Dtype::BOOL),
        ("torch", "float64") => dtype(Dtype::F64),
        ("torch", "float32") => dtype(Dtype::F32),
        ("torch", "float16") => dtype(Dtype::F16),
        ("torch", "bfloat16") => dtype(Dtype::BF16),
        ("torch", "int64") => dtype(Dtype::I64),
        ("torch", "int32") => dtype(Dtype::I32),
        ("torch", "int16") => dtype(Dtype::I16),
        ("torch", "int8") => dtype(Dtype::I8),
        ("torch", "uint64") => dtype(Dtype::U64),
        ("torch", "uint32") => dtype(Dtype::U32),
        ("torch", "uint16") => dtype(Dtype::U16),
        ("torch", "uint8") => dtype(Dtype::U8),
        ("torch", "bool") => dtype(Dtype::BOOL),
        ("torch", "float8_e4m3fn") => dtype(Dtype::F8_E4M3),
        ("torch", "float8_e5m2") => dtype(Dtype::F8_E5M2),
        ("torch", "float8_e8m0fnu") => dtype(Dtype::F8_E8M0),
        ("torch", "float8_e4m3fnuz") => dtype(Dtype::F8_E4M3FNUZ),
        ("torch", "float8_e5m2fnuz") => dtype(Dtype::F8_E5M2FNUZ),
        _ => Err(Refusal::Foreign(format!("{module}.{name}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pickle_with_code_is_refused_by_the_name_of_what_it_calls() {
        let evil = b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.";
        let refusal = run(&mut &evil[..]).unwrap_err();
        assert!(refusal.to_string().contains("posix.system"), "{refusal}");
    }

    #[test]
    fn a_list_that_holds_itself_does_no_harm() {
        run(&mut &b"\x80\x02]q\x00h\x00a."[..]).unwrap();
    }

    #[test]
    fn a_long_list_that_is_named_again_and_again_is_refused_before_it_fills_memory() {
        // A list of 2^14 values, which 2^14 calls of torch.Size copy: 5 bytes for each.
        let mut program = b"\x80\x02](".to_vec();
        program.extend(vec![b'N'; 1 << 14]);
        program.extend(b"e\x85q\x00ctorch\nSize\nq\x01");
        program.extend(b"h\x01h\x00R".repeat(1 << 14));
        let refusal = run(&mut &program[..]).unwrap_err();
        assert!(refusal.to_string().contains("repeats lists"), "{refusal}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_machine_panic(bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(&b"().KqhR]}tus\x85\x86\x87NQbcX"[..])], 0..80)
        ) {
            let _ = run(&mut &bytes[..]);
        }
    }
}
