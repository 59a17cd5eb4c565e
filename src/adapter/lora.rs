//! LoRA on linear layers, embeddings and convolutions: `W += scale * B @ A`, and the bias of `B`.
//!
//! Scale is `alpha / r`, or `alpha / sqrt(r)` for rsLoRA, with rank and alpha per module. Stored shapes: linear
//! `A` `[r, in]`, `B` `[out, r]`, `W` `[out, in]` (transposed for Conv1D); embedding `A` `[r, vocabulary]`,
//! `B` `[dim, r]`, `W` `[vocabulary, dim]`; convolution `A` `[r, in, ..]`, `B` `[out, r, 1, ..]`.

use std::ops::Range;

use super::AdapterError;
use super::change::{Addend, Effect};
use super::config::AdapterConfig;
use super::contents::{Module, Tensor};
use super::dora::{self, Axis};
use super::draft::{Context, Edit, Target};
use super::experts;
use super::lazy::Lazy;
use super::lowrank::Factors;
use super::residual::{Init, Residual};
use crate::recipe::{ReadError, Recipe, Scratch};
use crate::shape::Shape;

/// PEFT's value of `lora_alpha` where the config has none.
const DEFAULT_ALPHA: f64 = 8.0;

/// Plans what the LoRA parameters of a module change; `wrappers` is how many sets of them the module has.
pub(super) fn plan(mut module: Module, wrappers: usize, cx: &mut Context) -> Result<(), AdapterError> {
    if module.has("lora_A") && (wrappers > 1 || !experts::targeted(&module.name, cx)?.is_empty()) {
        return experts::plan(module, wrappers, cx);
    }
    if let Some(tokens) = module.take("trainable_tokens_delta") {
        super::saved::trainable_tokens(&module.name, tokens, cx)?;
    }
    if let Some(a) = module.take("lora_A") {
        let b = module.need("lora_B", "lora_A", cx.label)?;
        weight(&mut module, &a, &b, cx)?;
    } else if let Some(a) = module.take("lora_embedding_A") {
        let b = module.need("lora_embedding_B", "lora_embedding_A", cx.label)?;
        embedding(&mut module, &a, &b, cx)?;
    } else if let Some(has) = ["lora_B", "lora_embedding_B"].into_iter().find(|p| module.has(p)) {
        module.need(&has.replace('B', "A"), has, cx.label)?;
    }
    cx.nothing_left(&module)
}

/// The factor of `B @ A`, without the adapter's weight, after checking the rank against the config's.
pub(super) fn scale(module: &str, a: &Tensor, rank: u64, experts: u64, cx: &Context) -> Result<f64, AdapterError> {
    scale_of(cx.config, cx.label, module, &a.name, rank / experts.max(1))
}

/// The factor of `B @ A` for factors of this rank; `tensor` is the name of `A`, `label` the adapter's, for the message.
pub(super) fn scale_of(
    config: &AdapterConfig,
    label: &str,
    module: &str,
    tensor: &str,
    rank: u64,
) -> Result<f64, AdapterError> {
    let expected = config.rank(module, "r")?;
    if rank == 0 {
        return Err(AdapterError::Unfit {
            adapter: label.to_string(),
            what: format!("tensor {tensor}"),
            cause: "has rank 0: the adapter is incomplete; save it again, gathered from all devices".into(),
        });
    }
    if let Some(expected) = expected.filter(|&r| r != rank) {
        return Err(AdapterError::Rank {
            adapter: label.to_string(),
            tensor: tensor.to_string(),
            module: module.to_string(),
            found: rank,
            expected,
        });
    }
    let alpha = config.alpha(module, "lora_alpha")?.unwrap_or(DEFAULT_ALPHA);
    let divisor = if config.flag("use_rslora")? { (rank as f64).sqrt() } else { rank as f64 };
    Ok(alpha / divisor)
}

fn weight(module: &mut Module, a: &Tensor, b: &Tensor, cx: &mut Context) -> Result<(), AdapterError> {
    if cx.find(&module.name, "weight")?.is_none()
        && let Some(place) = experts::place(&module.name, cx)?
    {
        return experts::plan_one(module, place, a, b, cx);
    }
    let target = cx.target(&module.name, "weight", &a.name)?;
    let (rank, columns) = flat(a, &target, cx)?;
    let (out, b_rank) = flat(b, &target, cx)?;
    if rank != b_rank && cx.config.rank(&module.name, "r")? == Some(b_rank) {
        return Err(cx.mismatch(a, &target, format!("{b_rank} rows, the rank of lora_B")));
    }
    if rank != b_rank {
        let needs = format!("{rank} columns, the rank of lora_A");
        return Err(cx.mismatch(b, &target, needs));
    }
    let scale = scale(&module.name, a, rank, 1, cx)?;
    let transposed = orientation(&module.name, a, b, (out, columns), &target, cx)?;
    let flat_a = a.recipe.clone().reshape(Shape::matrix(rank, columns))?;
    let flat_b = b.recipe.clone().reshape(Shape::matrix(out, rank))?;
    let factors = if transposed {
        Factors::new(flat_b.transposed()?, flat_a.transposed()?, scale)
    } else {
        Factors::new(flat_a, flat_b, scale)
    };
    let edit = match module.take("lora_magnitude_vector") {
        Some(magnitude) => {
            let axis = if transposed { Axis::Columns } else { Axis::Rows };
            let effect = dora::plan(&magnitude, factors, out, axis, &target, cx)?;
            Edit::new("DoRA", Some(rank), &[a, b, &magnitude], effect)
        }
        None => match init(cx)? {
            Some(init) => {
                let effect = Effect::Rewrites(Box::new(Residual { factors, init, initial: Lazy::default() }));
                Edit::new(if init == Init::Pissa { "PiSSA" } else { "OLoRA" }, Some(rank), &[a, b], effect)
            }
            None => Edit::new("LoRA", Some(rank), &[a, b], Effect::LowRank(factors)),
        },
    };
    let as_matrix = target.shape().ndim() > 2;
    cx.edit(&target, &module.name, Edit { as_matrix, ..edit });
    if let Some(bias) = module.take("lora_B.bias") {
        self::bias(&module.name, bias, scale, "LoRA bias", cx)?;
    }
    Ok(())
}

/// Whether the initial factors were taken out of the base, and how.
fn init(cx: &Context) -> Result<Option<Init>, AdapterError> {
    let init = match cx.config.text("init_lora_weights").map(str::to_ascii_lowercase).as_deref() {
        Some("pissa") => Init::Pissa,
        Some("olora") => Init::Olora,
        _ => return Ok(None),
    };
    if cx.config.flag("use_dora")? {
        return Err(cx.refuse(
            "DoRA over a residual base",
            "PEFT's norms of it depend on the version that trained it",
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion",
        ));
    }
    Ok(Some(init))
}

/// First dimension and the product of the others.
fn flat(tensor: &Tensor, target: &Target, cx: &Context) -> Result<(u64, u64), AdapterError> {
    match tensor.dims() {
        [first, rest @ ..] if !rest.is_empty() => Ok((*first, rest.iter().product())),
        _ => Err(cx.mismatch(tensor, target, "a matrix (was it gathered before it was saved?)")),
    }
}

/// Whether the model stores the weight `[in, out]`, after checking both factors against its shape.
fn orientation(
    module: &str,
    a: &Tensor,
    b: &Tensor,
    (out, columns): (u64, u64),
    target: &Target,
    cx: &Context,
) -> Result<bool, AdapterError> {
    let (rows, cols) = target.matrix();
    let (straight, turned) = ((out, columns) == (rows, cols), (columns, out) == (rows, cols));
    match (straight, turned) {
        (true, true) => cx.stored_transposed(module),
        (true, false) => Ok(false),
        (false, true) if cx.stored_transposed(module)? => Ok(true),
        _ => {
            let transposed = cx.stored_transposed(module)?;
            let (needs_out, needs_in) = if transposed { (cols, rows) } else { (rows, cols) };
            if columns != needs_in {
                let rank = a.dims()[0];
                return Err(cx.mismatch(a, target, format!("[{rank}, {needs_in}]")));
            }
            Err(cx.mismatch(b, target, format!("{needs_out} rows")))
        }
    }
}

fn embedding(module: &mut Module, a: &Tensor, b: &Tensor, cx: &mut Context) -> Result<(), AdapterError> {
    let target = cx.target(&module.name, "weight", &a.name)?;
    let ([vocabulary, dim], [rank, a_cols], [b_rows, b_cols]) = (target.shape().dims(), a.dims(), b.dims()) else {
        let tensor = if a.dims().len() == 2 { b } else { a };
        return Err(cx.mismatch(tensor, &target, "a matrix"));
    };
    let (vocabulary, dim, rank) = (*vocabulary, *dim, *rank);
    if *a_cols != vocabulary {
        return Err(cx.mismatch(a, &target, format!("[{rank}, {vocabulary}]")));
    }
    if (*b_rows, *b_cols) != (dim, rank) {
        return Err(cx.mismatch(b, &target, format!("[{dim}, {rank}]")));
    }
    let scale = scale(&module.name, a, rank, 1, cx)?;
    let factors = Factors::new(b.recipe.clone().transposed()?, a.recipe.clone().transposed()?, scale);
    let edit = match module.take("lora_magnitude_vector") {
        Some(magnitude) => {
            let effect = dora::plan(&magnitude, factors, dim, Axis::Columns, &target, cx)?;
            Edit::new("DoRA", Some(rank), &[a, b, &magnitude], effect)
        }
        // PEFT rounds an embedding's delta to the model's type before it adds it; a linear layer's it does not.
        None => Edit { rounds_addend: true, ..Edit::new("LoRA", Some(rank), &[a, b], Effect::LowRank(factors)) },
    };
    cx.edit(&target, &module.name, edit);
    Ok(())
}

/// `scale * b`, for a vector.
struct ScaledVector {
    vector: Recipe,
    scale: f32,
}

impl Addend for ScaledVector {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.vector.rows(rows, out, scratch)?;
        out.iter_mut().for_each(|x| *x *= self.scale);
        Ok(())
    }
}

/// A trained addend of a layer's bias joins it; `kind` is the form of the adapter, for the report.
pub(super) fn bias(
    module: &str,
    tensor: Tensor,
    scale: f64,
    kind: &'static str,
    cx: &mut Context,
) -> Result<(), AdapterError> {
    let Some(target) = cx.find(module, "bias")? else {
        return Err(cx.refuse(
            format!("{kind} of {module}"),
            "the layer of the model has no bias that it could join",
            "train without it",
        ));
    };
    let out = target.shape().elements();
    if tensor.recipe.shape().elements() != out || target.shape().dims() != [out] {
        return Err(cx.mismatch(&tensor, &target, format!("{out} elements")));
    }
    let vector = tensor.recipe.clone().reshape(Shape::vector(out))?;
    let effect = Effect::Adds(Box::new(ScaledVector { vector, scale: scale as f32 }));
    cx.edit(&target, module, Edit::new(kind, None, &[&tensor], effect));
    Ok(())
}
