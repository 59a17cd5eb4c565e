//! Tensor shapes, and the one view of a tensor that the program computes with: rows of equal length.

use std::fmt;

/// A tensor's dimensions in row-major order, slowest first (the order of safetensors and PyTorch).
/// GGUF writes them reversed; [`Shape::ne`] gives that form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<u64>);

impl Shape {
    /// A shape from its dimensions, slowest first. `None` when the number of elements overflows `u64`, or would
    /// without the dimensions that are zero: so no product of some dimensions overflows.
    pub fn new(dims: impl Into<Vec<u64>>) -> Option<Self> {
        let dims = dims.into();
        dims.iter().filter(|&&d| d > 0).try_fold(1u64, |n, &d| n.checked_mul(d))?;
        Some(Shape(dims))
    }

    /// The shape of a vector.
    pub fn vector(len: u64) -> Self {
        Shape(vec![len])
    }

    /// The shape of a matrix of `rows` rows. Panics only when `rows * cols` overflows `u64`.
    pub fn matrix(rows: u64, cols: u64) -> Self {
        Shape::new([rows, cols]).expect("a matrix of more than 2^64 elements")
    }

    /// Dimensions, slowest first.
    pub fn dims(&self) -> &[u64] {
        &self.0
    }

    /// Dimensions in GGUF order, fastest first.
    pub fn ne(&self) -> Vec<u64> {
        self.0.iter().rev().copied().collect()
    }

    /// Number of dimensions; 0 for a scalar.
    pub fn ndim(&self) -> usize {
        self.0.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.0.iter().product()
    }

    /// Elements in a row: the fastest dimension, 1 for a scalar.
    pub fn row_len(&self) -> u64 {
        self.0.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the fastest. There are none of no elements, whatever a file
    /// says of their number.
    pub fn rows(&self) -> u64 {
        match self.0.split_last() {
            Some((0, _)) => 0,
            Some((_, rest)) => rest.iter().product(),
            None => 1,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_times_row_length_is_the_number_of_elements() {
        for dims in [vec![], vec![7], vec![3, 4], vec![2, 3, 4], vec![0, 4], vec![0], vec![4, 0, 4]] {
            let s = Shape::new(dims).unwrap();
            assert_eq!(s.rows() * s.row_len(), s.elements(), "{s}");
        }
    }

    #[test]
    fn an_overflowing_shape_is_refused() {
        assert!(Shape::new([u64::MAX, 2]).is_none());
        assert!(Shape::new([u64::MAX, 0, 2]).is_none());
    }

    #[test]
    fn empty_rows_are_none() {
        assert_eq!(Shape::new([1 << 60, 0]).unwrap().rows(), 0);
    }
}
