//! The command line, described: names, values, help. Nothing here acts.

use std::path::PathBuf;
use std::str::FromStr;

use crate::ollama::chat::Role;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::device::Choice;

/// Turns a Hugging Face model and its adapters into a quantized GGUF for llama.cpp and Ollama.
#[derive(Debug, Parser)]
#[command(name = "to-gguf", version, about, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(super) struct Cli {
    /// What to do, other than converting.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The conversion.
    #[command(flatten)]
    pub convert: ConvertArgs,
}

const EXAMPLES: &str = "Examples:
  to-gguf --quant q4_k_m                     in a folder that holds a model or an adapter
  to-gguf my-model --lora my-adapter         merge an adapter, write my-model-gguf/
  to-gguf my-adapter --quant q4_k_m,q8_0     two files from one read
  to-gguf my-model --quant f16 -o out.gguf   one file and nothing else";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what a GGUF file holds: keys, tensors, types, sizes
    Inspect(super::inspect::InspectArgs),
    /// Compare two GGUF files: keys, order, types, bytes, values; exit status 1 where they differ
    Diff(super::diff::DiffArgs),
    /// Make an adapter of the difference of two models
    Extract(Box<super::extract::ExtractArgs>),
    /// Translate a model's chat template for Ollama, and prove the translation
    Template(super::template::TemplateArgs),
    /// Check what Ollama gets, or put it there
    Ollama(super::ollama::OllamaArgs),
    /// List the GPUs that the driver sees
    Devices(super::devices::DevicesArgs),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Options of a conversion.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// Model folder, adapter folder or GGUF file [default: the current folder]
    pub model: Option<PathBuf>,

    /// Merge a LoRA adapter, times WEIGHT (default 1); repeatable
    #[arg(long = "lora", value_name = "ADAPTER[=WEIGHT]")]
    pub loras: Vec<LoraArg>,

    /// The base model of an adapter, where it is not found by itself
    #[arg(long, value_name = "MODEL")]
    pub base: Option<PathBuf>,

    /// Types to write, from one read: llama.cpp's names, f32, f16, bf16, auto
    /// [default: q4_k_m; f32 for an adapter]
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub quant: Vec<String>,

    /// A .gguf file, or a folder for the files [default: ./NAME-gguf]
    #[arg(short, long = "output", value_name = "OUT")]
    pub output: Option<PathBuf>,

    /// Put the model into Ollama's own store as NAME[:TAG], so that `ollama run` finds it
    #[arg(long, value_name = "NAME[:TAG]", conflicts_with_all = ["no_modelfile", "dry_run"])]
    pub ollama: Option<String>,

    /// Go through a running Ollama server instead of its store; NAME may be given here or with --ollama
    #[arg(long, value_name = "NAME", num_args = 0..=1, conflicts_with_all = ["no_modelfile", "dry_run"])]
    #[allow(clippy::option_option)] // the option may stand with or without its name
    pub ollama_create: Option<Option<String>>,

    /// The system prompt that the Modelfile sets, instead of the chat template's own
    #[arg(long, value_name = "TEXT", conflicts_with = "no_modelfile")]
    pub system: Option<String>,

    /// An example message for the Modelfile (ROLE: system, user, assistant); repeatable
    #[arg(long = "message", value_name = "ROLE=TEXT", conflicts_with = "no_modelfile")]
    pub messages: Vec<MessageArg>,

    /// A projector's GGUF, named by a second FROM line of the Modelfile; repeatable
    #[arg(long = "mmproj", value_name = "FILE", conflicts_with = "no_modelfile")]
    pub projectors: Vec<PathBuf>,

    /// Split each GGUF into parts of at most so many bytes of tensors
    #[arg(long, value_name = "SIZE", conflicts_with = "split_max_tensors")]
    pub split_max_size: Option<ByteSize>,

    /// Split each GGUF into parts of at most so many tensors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub split_max_tensors: Option<u64>,

    /// Put only the keys into the first part of a split
    #[arg(long)]
    pub no_tensor_first_split: bool,

    /// The type that merged sums are rounded to: f32 keeps all of the training, bf16 and f16 give the bytes that
    /// merging into a 16-bit model gives
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub merge_dtype: MergeType,

    /// How to save the result
    #[arg(long, value_name = "METHOD", default_value = "gguf")]
    pub save_method: SaveMethod,

    /// The type of a merged model's weights [default: the base's]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<MergeType>,

    /// Bytes of tensors in each file of a merged model, at most
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub max_shard_size: ByteSize,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub adapter: super::adapter::AdapterArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub quantizer: QuantizerArgs,

    /// Name of the pre-tokenizer, where it is not recognised
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,

    /// Tell for each tensor which adapter changed it, and by how much
    #[arg(long)]
    pub report: bool,

    /// Write no Modelfile
    #[arg(long)]
    pub no_modelfile: bool,

    /// Replace existing files
    #[arg(long)]
    pub force: bool,

    /// Print what would be written, exact to the byte, and write nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: RunArgs,
}

/// Options that carry llama-quantize's names.
#[derive(Debug, Args)]
#[command(next_help_heading = "Quantizer")]
pub(super) struct QuantizerArgs {
    /// Importance matrix, in llama-imatrix's GGUF or .dat form
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// One type for all quantized tensors
    #[arg(long)]
    pub pure: bool,
    /// Leave output.weight as it is
    #[arg(long)]
    pub leave_output_tensor: bool,
    /// Type of output.weight
    #[arg(long, value_name = "TYPE")]
    pub output_tensor_type: Option<String>,
    /// Type of the token embeddings
    #[arg(long, value_name = "TYPE")]
    pub token_embedding_type: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub tensor_types: TensorTypeArgs,
    /// Set a metadata key (TYPE: int, float, bool, str); repeatable
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    pub override_kv: Vec<String>,
    /// Leave out these layers, comma-separated
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    pub prune_layers: Vec<String>,
    /// Use the importance matrix only for tensors whose name contains this; repeatable
    #[arg(long, value_name = "NAME", conflicts_with = "exclude_weights")]
    pub include_weights: Vec<String>,
    /// Use no importance matrix for tensors whose name contains this; repeatable
    #[arg(long, value_name = "NAME")]
    pub exclude_weights: Vec<String>,
    /// Write as many parts as a split input has
    #[arg(long)]
    pub keep_split: bool,
    /// Allow requantizing tensors that are quantized already, at a loss
    #[arg(long)]
    pub allow_requantize: bool,
}

/// `--tensor-type` and `--tensor-type-file` in the order in which they were given: the first rule that matches a name
/// decides, so their order among each other matters.
#[derive(Debug, Default)]
pub(super) struct TensorTypeArgs(pub Vec<TensorTypeArg>);

/// A rule, or a file of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TensorTypeArg {
    /// `REGEX=TYPE`.
    Rule(String),
    /// A file with such rules between white space.
    File(PathBuf),
}

impl TensorTypeArgs {
    const RULE: &str = "tensor_type";
    const FILE: &str = "tensor_type_file";
}

impl Args for TensorTypeArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let arg = |id: &'static str, long: &'static str| Arg::new(id).long(long).action(ArgAction::Append);
        command
            .arg(
                arg(Self::RULE, "tensor-type")
                    .value_name("REGEX=TYPE")
                    .help("Type of the tensors whose name matches; repeatable, the first that matches decides"),
            )
            .arg(
                arg(Self::FILE, "tensor-type-file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("File with REGEX=TYPE entries; repeatable"),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for TensorTypeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let rules = matches.get_many::<String>(Self::RULE).into_iter().flatten().cloned().map(TensorTypeArg::Rule);
        let files = matches.get_many::<PathBuf>(Self::FILE).into_iter().flatten().cloned().map(TensorTypeArg::File);
        let places = |id| matches.indices_of(id).into_iter().flatten();
        let mut given: Vec<_> = places(Self::RULE).zip(rules).chain(places(Self::FILE).zip(files)).collect();
        given.sort_by_key(|(place, _)| *place);
        self.0 = given.into_iter().map(|(_, arg)| arg).collect();
        Ok(())
    }
}

/// Options of how the program runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub(super) struct RunArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N, or several GPUs as cuda:0,1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceArg,
    /// Bound of the memory that is used of each GPU, such as 4GB [default: half of what is free]
    #[arg(long, value_name = "SIZE")]
    pub gpu_memory: Option<ByteSize>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub threads: Option<u16>,
    /// Bound of the working memory, such as 200MB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// Print one JSON report on stdout
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors and results
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more: decisions per tensor; twice, still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How the result is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum SaveMethod {
    /// GGUF files
    Gguf,
    /// Merged safetensors in 16 bits, as transformers saves them
    #[value(name = "merged_16bit")]
    Merged16bit,
    /// Merged safetensors in 4 bits, as bitsandbytes packs them; warns of the loss
    #[value(name = "merged_4bit")]
    Merged4bit,
    /// The same without the warning
    #[value(name = "merged_4bit_forced")]
    Merged4bitForced,
    /// The adapter only
    Lora,
}

/// The type that merged sums are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum MergeType {
    /// No rounding
    F32,
    /// Nearest-even to bf16
    Bf16,
    /// Nearest-even to f16
    F16,
}

/// `ADAPTER` or `ADAPTER=WEIGHT`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoraArg {
    /// The adapter's folder.
    pub path: PathBuf,
    /// Factor of its changes.
    pub weight: f32,
}

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // A folder whose name holds an equals sign is meant as it stands.
        if !PathBuf::from(s).exists()
            && let Some((path, weight)) = s.rsplit_once('=')
        {
            let value: f32 = weight.parse().map_err(|_| format!("'{weight}' is not a number"))?;
            if !value.is_finite() {
                return Err(format!("the weight {weight} is not finite"));
            }
            return Ok(LoraArg { path: path.into(), weight: value });
        }
        Ok(LoraArg { path: s.into(), weight: 1.0 })
    }
}

/// `ROLE=TEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MessageArg {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
}

impl FromStr for MessageArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (role, text) = s.split_once('=').ok_or("write ROLE=TEXT, such as user=Hello")?;
        let roles = [Role::System, Role::User, Role::Assistant];
        match roles.into_iter().find(|r| r.as_str() == role) {
            Some(role) => Ok(Self { role, text: text.to_owned() }),
            None => Err(format!("'{role}' is no role; use system, user or assistant")),
        }
    }
}

/// `auto`, `cpu` or `cuda[:N[,M]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceArg(pub Choice);

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let choice = match s.split_once(':') {
            None if s == "auto" => Choice::Auto,
            None if s == "cpu" => Choice::Cpu,
            None if s == "cuda" => Choice::Cuda(vec![0]),
            Some(("cuda", list)) => {
                let number = |n: &str| n.parse().map_err(|_| format!("'{n}' is not a GPU number"));
                Choice::Cuda(list.split(',').map(number).collect::<Result<_, _>>()?)
            }
            _ => return Err("expected auto, cpu, cuda or cuda:N".to_owned()),
        };
        Ok(DeviceArg(choice))
    }
}

/// A number of bytes: `5GB` (10^9), `5GiB` (2^30), `500M`, `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let digits = s.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let value: f64 = number.parse().map_err(|_| format!("'{s}' is not a size such as 5GB"))?;
        let unit = unit.trim().to_ascii_lowercase();
        let (prefix, base) = match unit.strip_suffix("ib") {
            Some(p) => (p, 1024f64),
            None => (unit.strip_suffix('b').unwrap_or(&unit), 1000f64),
        };
        let power = match prefix {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(format!("'{unit}' is not a unit; use KB, MB, GB, KiB, MiB or GiB")),
        };
        let bytes = value * base.powi(power);
        if bytes < 1.0 || bytes > u64::MAX as f64 {
            return Err(format!("{s} is out of range"));
        }
        Ok(ByteSize(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_description_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rules_and_files_of_rules_keep_their_order() {
        let args = "to-gguf --tensor-type a=f16 --tensor-type-file one --tensor-type=b=f16 --tensor-type-file=two";
        let cli = Cli::try_parse_from(args.split(' ')).unwrap();
        let rule = |s: &str| TensorTypeArg::Rule(s.into());
        let file = |s: &str| TensorTypeArg::File(s.into());
        assert_eq!(cli.convert.quantizer.tensor_types.0, [rule("a=f16"), file("one"), rule("b=f16"), file("two")]);
    }

    #[test]
    fn sizes_take_decimal_and_binary_units() {
        assert_eq!("5GB".parse(), Ok(ByteSize(5_000_000_000)));
        assert_eq!("1.5KiB".parse(), Ok(ByteSize(1536)));
        assert_eq!("200".parse(), Ok(ByteSize(200)));
        assert!("5XB".parse::<ByteSize>().is_err());
        assert!("0".parse::<ByteSize>().is_err());
    }

    #[test]
    fn an_adapter_may_have_a_weight() {
        let arg: LoraArg = "a=0.5".parse().unwrap();
        assert_eq!((arg.path.to_str(), arg.weight), (Some("a"), 0.5));
        assert_eq!("a".parse::<LoraArg>().unwrap().weight, 1.0);
        assert!("a=x".parse::<LoraArg>().is_err());
        assert!("a=inf".parse::<LoraArg>().is_err());
    }

    #[test]
    fn devices_are_auto_cpu_or_numbered_gpus() {
        assert_eq!("cuda:0,1".parse(), Ok(DeviceArg(Choice::Cuda(vec![0, 1]))));
        assert_eq!("cuda".parse(), Ok(DeviceArg(Choice::Cuda(vec![0]))));
        assert!("cuda:".parse::<DeviceArg>().is_err());
        assert!("tpu".parse::<DeviceArg>().is_err());
    }
}
