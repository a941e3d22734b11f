//! `demo`: three real nodes on this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use sharelens::config::LinkConfig;
use sharelens::control::{ModelId, Start};
use sharelens::outcome::{self, Difference};
use sharelens::{Identity, Outcome, PlanReport, Role};

use super::document::Document;
use super::nodes::{self, Nodes};
use super::{Mode, NotTrusted, RingName, Ui, Wan, infer, model, outputs, page, shipped, show};

/// Files that the report shows.
const BOXES: &str = "boxes.png";
const VIEW: &str = "server0-view.png";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum What {
    /// Boxes around blood cells.
    #[default]
    Detect,
    /// A label for a brain MRI.
    Classify,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// What to show.
    #[arg(value_enum, default_value_t)]
    what: What,
    /// Image to use instead of the one that comes along.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Model to use instead of the one that comes along.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Where correlations come from.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
    /// Send the image at once, with preprocessing going on beside the online phase.
    #[arg(long)]
    overlap: bool,
    /// Also say what it would take over such a link.
    #[arg(long, value_name = "RTTms,MBIT")]
    wan: Option<Wan>,
    /// Where to write results.
    #[arg(long, value_name = "DIR", default_value = "demo-out")]
    out: PathBuf,
}

impl Demo {
    pub fn run(self, ui: Ui) -> Result<()> {
        super::runtime()?.block_on(async {
            tokio::select! {
                outcome = self.show(ui) => outcome,
                // Leaving this block stops the nodes.
                _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            }
        })
    }

    async fn show(self, ui: Ui) -> Result<()> {
        let shipped = match self.what {
            What::Detect => &shipped::DETECTOR,
            What::Classify => &shipped::CLASSIFIER,
        };
        // Calibration computes for a moment, while the nodes start.
        let file = self.model.clone();
        let preparing = tokio::task::spawn_blocking(move || match file {
            Some(file) => model::load(&file),
            None => shipped.model(),
        });
        let identity = Arc::new(Identity::generate()?);
        let nodes = Nodes::start(&nodes::Options::default(), identity.pin()).await?;
        for role in Role::ALL {
            let card = nodes.cluster.card(role);
            ui.say(format_args!(
                "  {:<9} {}  ready   (mTLS, key {}…)",
                role.to_string(),
                card.public,
                &card.pin.to_string()[..4]
            ));
        }
        let scratch = tempfile::tempdir()?;
        let image = match &self.image {
            Some(image) => image.clone(),
            None => shipped.image(scratch.path())?,
        };
        let prepared = preparing.await??;
        let name = prepared.config().name.clone();
        let input = model::input(prepared.config().preprocess.as_ref(), &image)?;
        let size = prepared.config().preprocess.as_ref().map(|p| format!(" {}x{}", p.size[1], p.size[0]));
        ui.say(format_args!("  model     {name}   image  {}{}", file_name(&image), size.unwrap_or_default()));

        let id = ModelId { name: "demo".into(), version: 1 };
        model::share(&prepared, self.ring, (None, self.wan), &nodes.cluster, &id, identity.clone(), ui)
            .await?;
        let client = infer::connect(&nodes.cluster, identity, &LinkConfig::default()).await?;
        let wanted = infer::Wanted { model: &id.name, version: None, owner: None };
        let done = infer::infer(&client, wanted, Start::overlapped(self.overlap), &image, ui).await?;
        client.close().await;
        nodes.stop().await;

        let twin = prepared.twin(&model::arithmetic(&prepared, self.ring)?)?;
        // The reference refuses what leaves its range, so there is nothing to compare with then.
        let plain = if done.ranges.in_range() { Some(twin.run(&input)?) } else { None };
        let float = prepared.float(&input)?;
        let shown = if self.image.is_some() { &image } else { Path::new(shipped.image.0) };
        let difference = plain.as_ref().map(|plain| Difference::of(&done.manifest, &done.outputs, plain));
        let plan = |wan: Wan| PlanReport::new(&done.manifest, wan.rtt_ms, wan.mbit).map(|plan| plan.total);
        let total = self.wan.map(plan).transpose()?;
        let document = Document {
            model: name,
            plain: plain.map(|plain| Outcome::new(&done.manifest, &plain)).transpose()?,
            float: Some(Outcome::new(&done.manifest, &float)?),
            difference,
            wan: total,
            ..done.document(shown, self.mode)?
        };
        std::fs::create_dir_all(&self.out).with_context(|| show(&self.out))?;
        let file = self.out.join("result.json");
        std::fs::write(&file, serde_json::to_string_pretty(&document)?).with_context(|| show(&file))?;
        let view = self.out.join(VIEW);
        let seen = picture(&done.manifest.program.input_shape, &done.view, &view)?;
        let mut wrote = vec![file];
        if let Some(found) = outcome::detections(&done.manifest, &done.outputs) {
            wrote = vec![self.out.join(BOXES), self.out.join("report.html")];
            outputs::boxes_picture(&image, &done.manifest, &found, &wrote[0])?;
            let page = page::html(&document, BOXES, seen.then_some(VIEW));
            std::fs::write(&wrote[1], page).with_context(|| show(&wrote[1]))?;
        }
        let cost = done.cost();
        ui.say(format_args!("{cost}\n{}", cost.layers_table()));
        if let (Some(wan), Some(total)) = (self.wan, total) {
            ui.say(format_args!(
                "  over {} ms and {} Mbit/s the links would add {:.3} s to the online phase",
                wan.rtt_ms, wan.mbit, total.seconds
            ));
        }
        let mut text = document.result.to_string();
        for warning in document.warnings() {
            text += &format!("\n  warning: {warning}");
        }
        let wrote: Vec<String> = wrote.iter().map(|file| show(file)).collect();
        if let Some(difference) = difference {
            text += &format!("\n  {difference}");
        }
        text += &format!("\n  wrote {}", wrote.join("  "));
        if seen {
            text += &format!("\nNobody saw the image: server 0's view is {}", show(&view));
        }
        ui.result(&document, text)?;
        if document.in_range == Some(false) {
            Err(NotTrusted { images: 1, failed: 0 }.into())
        } else {
            Ok(())
        }
    }
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

/// Writes the first channel of `values`, in storage order, as a grey picture, if they are one.
fn picture(shape: &[usize], values: &[u8], file: &Path) -> Result<bool> {
    let [1, h, w, c] = shape[..] else { return Ok(false) };
    let grey = values.iter().step_by(c).copied().collect();
    let (w, h) = (u32::try_from(w)?, u32::try_from(h)?);
    let Some(picture) = image::GrayImage::from_raw(w, h, grey) else { return Ok(false) };
    picture.save(file).with_context(|| show(file))?;
    Ok(true)
}
