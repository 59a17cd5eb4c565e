//! The layout of a safetensors file, known before a byte of it is written.
//!
//! Order, header and padding are those of the `safetensors` library: elements of the widest type first, then by
//! name; the header filled up with spaces to a multiple of eight. One thing is added: tensors whose length only
//! the rows can tell, within a bound ([`TensorSpec::late`]). They come first in the data, and the header's spaces
//! take up what they do not need, so that every other tensor has its place from the start and the file its size.

use std::cmp::Reverse;
use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// Bytes of the header's length.
const LENGTH: u64 = 8;

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, slowest first; for a late tensor the most that it may have.
    pub shape: Vec<u64>,
    /// Whether its length is known only at the end. Such a tensor is a vector of bytes.
    pub late: bool,
}

impl TensorSpec {
    /// A tensor of known size.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[u64]) -> Self {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec(), late: false }
    }

    /// A vector of at most so many bytes.
    pub fn late(name: impl Into<String>, most: u64) -> Self {
        TensorSpec { name: name.into(), dtype: Dtype::U8, shape: vec![most], late: true }
    }

    /// Bytes of its data, at most.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// Where everything stands in a file.
#[derive(Clone, Debug)]
pub struct ShardLayout {
    specs: Vec<TensorSpec>,
    /// Tensors in file order, the late ones first.
    order: Vec<usize>,
    /// Place of each tensor; for a late one, its number among them.
    places: Vec<u64>,
    late: usize,
    /// Bytes before the first tensor of known size.
    head: u64,
    size: u64,
}

/// The header cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the header of a safetensors file with {tensors} tensors cannot be made: {cause}")]
pub struct ShardError {
    /// Number of tensors.
    pub tensors: usize,
    /// Why.
    pub cause: String,
}

impl ShardLayout {
    /// Places the tensors of one file.
    pub fn new(specs: Vec<TensorSpec>) -> Result<Self, ShardError> {
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by(|&a, &b| {
            let key = |i: usize| (!specs[i].late, Reverse(specs[i].dtype));
            key(a).cmp(&key(b)).then_with(|| specs[a].name.cmp(&specs[b].name))
        });
        let late = specs.iter().filter(|s| s.late).count();
        let mut this = ShardLayout { places: vec![0; specs.len()], order, late, head: 0, size: 0, specs };
        let most: Vec<u64> = this.order[..late].iter().map(|&i| this.specs[i].bytes()).collect();
        let text = this.header_text(&most)?;
        this.head = (LENGTH + text.len() as u64 + most.iter().sum::<u64>()).next_multiple_of(LENGTH);
        let mut at = this.head;
        for (rank, &i) in this.order.iter().enumerate() {
            if rank < late {
                this.places[i] = rank as u64;
            } else {
                this.places[i] = at;
                at += this.specs[i].bytes();
            }
        }
        this.size = at;
        Ok(this)
    }

    /// The tensors, in the order given.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Where the data of tensor `i`, of known size, begins in the file.
    pub fn offset(&self, i: usize) -> u64 {
        self.places[i]
    }

    /// The number of tensor `i` among the late ones.
    pub fn late_number(&self, i: usize) -> usize {
        self.places[i] as usize
    }

    /// How many tensors are late.
    pub fn late_count(&self) -> usize {
        self.late
    }

    /// Bytes of the file.
    pub fn file_size(&self) -> u64 {
        self.size
    }

    /// The file up to the first tensor of known size: length, header, and the late tensors by their number.
    pub fn head(&self, late: &[Vec<u8>]) -> Result<Vec<u8>, ShardError> {
        let sizes: Vec<u64> = late.iter().map(|b| b.len() as u64).collect();
        let mut text = self.header_text(&sizes)?.into_bytes();
        let room = (self.head - LENGTH).checked_sub(sizes.iter().sum());
        let room = room.filter(|r| *r >= text.len() as u64).ok_or_else(|| self.error("a late tensor is too long"))?;
        text.resize(room as usize, b' ');
        let mut head = (text.len() as u64).to_le_bytes().to_vec();
        head.append(&mut text);
        late.iter().for_each(|bytes| head.extend_from_slice(bytes));
        Ok(head)
    }

    fn header_text(&self, late: &[u64]) -> Result<String, ShardError> {
        let mut at = 0usize;
        let mut tensors = Vec::with_capacity(self.specs.len());
        for (rank, &i) in self.order.iter().enumerate() {
            let spec = &self.specs[i];
            let (shape, bytes) = match late.get(rank) {
                Some(&bytes) => (vec![bytes as usize], bytes),
                None => (spec.shape.iter().map(|&d| d as usize).collect(), spec.bytes()),
            };
            let end = at + bytes as usize;
            tensors.push((spec.name.clone(), TensorInfo { dtype: spec.dtype, shape, data_offsets: (at, end) }));
            at = end;
        }
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(about), tensors).map_err(|e| self.error(&e.to_string()))?;
        serde_json::to_string(&metadata).map_err(|e| self.error(&e.to_string()))
    }

    fn error(&self, cause: &str) -> ShardError {
        ShardError { tensors: self.specs.len(), cause: cause.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn the_file_is_the_one_that_the_library_writes() {
        let specs = [
            ("b", Dtype::BF16, vec![3, 5]),
            ("a", Dtype::F32, vec![2]),
            ("c", Dtype::BF16, vec![]),
            ("z", Dtype::U8, vec![7]),
        ];
        let data: Vec<Vec<u8>> = (0..specs.len() as u8)
            .map(|i| vec![i; TensorSpec::new("", specs[i as usize].1, &specs[i as usize].2).bytes() as usize])
            .collect();
        let views = specs.iter().zip(&data).map(|((name, dtype, shape), bytes)| {
            let shape = shape.iter().map(|&d| d as usize).collect();
            (*name, TensorView::new(*dtype, shape, bytes).unwrap())
        });
        let expected = safetensors::serialize(views, Some(HashMap::from([("format".into(), "pt".into())]))).unwrap();
        let layout = ShardLayout::new(specs.iter().map(|(n, d, s)| TensorSpec::new(*n, *d, s)).collect()).unwrap();
        let mut file = layout.head(&[]).unwrap();
        file.resize(layout.file_size() as usize, 0);
        for (i, bytes) in data.iter().enumerate() {
            let at = layout.offset(i) as usize;
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(file, expected);
    }

    #[test]
    fn late_tensors_leave_every_other_in_its_place() {
        let layout = ShardLayout::new(vec![
            TensorSpec::new("w", Dtype::F32, &[2]),
            TensorSpec::late("s", 20),
            TensorSpec::late("r", 20),
        ])
        .unwrap();
        for lengths in [[20, 20], [3, 11], [0, 1]] {
            let late = lengths.map(|n| vec![b'x'; n]);
            let mut file = layout.head(&late).unwrap();
            assert_eq!(file.len() as u64, layout.offset(0));
            file.extend(1f32.to_le_bytes().repeat(2));
            assert_eq!(file.len() as u64, layout.file_size());
            let read = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert_eq!(read.tensor("r").unwrap().shape(), [lengths[layout.late_number(2)]]);
            assert_eq!(read.tensor("s").unwrap().shape(), [lengths[layout.late_number(1)]]);
            assert_eq!(read.tensor("w").unwrap().data(), 1f32.to_le_bytes().repeat(2));
        }
        assert!(layout.head(&[vec![0; 21], vec![0; 40]]).is_err());
    }
}
