//! `larder warm`: brings images into the cache of a running instance before anybody asks for them.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use saphyr_parser::{Event, Parser};

use super::chart;
use super::error::CommandError;
use super::instance::{Instance, Where};
use super::manage::size;
use super::output::{print, print_json};
use crate::admin::warm::{WarmImage, WarmJob, WarmRequest};

/// How often it is asked how far it is.
const EVERY: Duration = Duration::from_millis(300);
/// Largest list, in bytes.
const LIST: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub struct Warm {
    /// Images, as in a pull: `docker.io/library/alpine:3.20`
    references: Vec<String>,
    /// A file with an image a line, or what `docker images` prints; `-` for standard input
    #[arg(long, short, value_name = "LIST")]
    file: Vec<PathBuf>,
    /// Kubernetes' manifests (YAML or JSON), such as `helm template` or `kubectl get pods -A -o yaml` prints; `-` for
    /// standard input
    #[arg(long, value_name = "FILE")]
    manifests: Vec<PathBuf>,
    /// A Helm chart, as a folder or .tgz: what `helm template` renders if helm is on PATH; else the images that
    /// Chart.yaml, values.yaml, crds/ and templates/ name by themselves, also of parts that are switched off
    #[arg(long, value_name = "DIR|FILE.tgz")]
    chart: Vec<PathBuf>,
    /// Only this platform, such as linux/amd64; may be given several times. Without it, all platforms
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<String>,
    #[command(flatten)]
    place: Where,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Runs `larder warm`. Fails if an image could not be brought in.
pub async fn run(files: &[PathBuf], arguments: &Warm) -> Result<(), CommandError> {
    let images = arguments.images().await?;
    if images.is_empty() {
        return Err(CommandError::Usage("name images, or a list with -f, --manifests or --chart".to_owned()));
    }
    let api = Instance::running(files, &arguments.place).await?;
    let request = WarmRequest { images, platforms: arguments.platform.clone() };
    let mut job: WarmJob = api.post("api/warm", &request).await?;
    let mut told = Told::default();
    let page = format!("api/warm/{}", job.id);
    loop {
        if !arguments.json {
            told.tell(&job)?;
        }
        if job.done {
            break;
        }
        tokio::time::sleep(EVERY).await;
        job = api.get(&page, &[]).await?;
    }
    if arguments.json {
        print_json(&job)?;
    }
    let failed = job.images.iter().filter(|image| image.state == "failed").count();
    if failed == 0 { Ok(()) } else { Err(CommandError::Quiet) }
}

impl Warm {
    /// Returns all images that the arguments name, each once, in their order.
    async fn images(&self) -> Result<Vec<String>, CommandError> {
        let mut images = self.references.clone();
        for file in &self.file {
            images.extend(listed(&read(file)?));
        }
        for file in &self.manifests {
            let found = in_manifests(&read(file)?);
            images.extend(found.map_err(|error| CommandError::Usage(format!("{}: {error}", file.display())))?);
        }
        for file in &self.chart {
            images.extend(of_chart(file).await?);
        }
        let mut seen = BTreeSet::new();
        images.retain(|image| seen.insert(image.clone()));
        Ok(images)
    }
}

fn counted(images: usize) -> String {
    if images == 1 { "1 image".to_owned() } else { format!("{images} images") }
}

/// Returns the images of a Helm chart, and tells on standard error how they were found and what could not be known.
async fn of_chart(path: &Path) -> Result<Vec<String>, CommandError> {
    let shown = path.display();
    let wrong = |why: String| CommandError::Usage(format!("{shown}: {why}"));
    let tell = |text: String| {
        // What cannot be told is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{shown}: {text}");
    };
    if let Err(error) = std::fs::metadata(path) {
        return Err(wrong(error.to_string()));
    }
    let why_not = match chart::rendered(path).await {
        Some(Ok(text)) => {
            let images = in_manifests(&text).map_err(wrong)?;
            tell(format!("{}, as helm template renders them", counted(images.len())));
            return Ok(images);
        }
        Some(Err(why)) => format!("helm template failed: {why}"),
        None => "helm is not on PATH".to_owned(),
    };
    let chart = path.to_owned();
    let named = tokio::task::spawn_blocking(move || chart::named(&chart)).await;
    let found = named.map_err(|error| CommandError::Failed(error.to_string()))?.map_err(wrong)?;
    tell(format!("{}, as the chart names them ({why_not})", counted(found.images.len())));
    found.notes.into_iter().for_each(tell);
    Ok(found.images)
}

fn read(file: &Path) -> Result<String, CommandError> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().take(LIST).read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|opened| opened.take(LIST).read_to_string(&mut text)),
    };
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(CommandError::Usage(format!("{}: {error}", file.display()))),
    }
}

/// Returns the images of a list: one a line, with comments behind `#`; or of the table that `docker images` prints.
fn listed(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    let heading: Vec<_> = lines.peek().map(|line| line.split_whitespace().collect()).unwrap_or_default();
    if !heading.starts_with(&["REPOSITORY", "TAG"]) {
        return lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    }
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, tag) = (words.next()?, words.next()?);
        // An image without a name cannot be pulled.
        (name != "<none>" && tag != "<none>").then(|| format!("{name}:{tag}"))
    };
    lines.skip(1).filter_map(row).collect()
}

/// Returns the values of all keys `image` in YAML or JSON.
fn in_manifests(text: &str) -> Result<Vec<String>, String> {
    /// Where the parser is.
    enum Inside {
        List,
        /// In a table, with the key whose value comes next; `None`: a key comes next.
        Table(Option<String>),
    }
    let mut images = Vec::new();
    let mut inside: Vec<Inside> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| error.to_string())?;
        match &event {
            Event::Scalar(value, ..) => match inside.last_mut() {
                Some(Inside::Table(key @ None)) => *key = Some(value.to_string()),
                Some(Inside::Table(key)) => {
                    let is_image = key.take().as_deref() == Some("image") && !value.is_empty();
                    images.extend(is_image.then(|| value.to_string()));
                }
                _ => {}
            },
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if let Some(Inside::Table(key)) = inside.last_mut() {
                    *key = match key {
                        // A table as a key: its value follows.
                        None => Some(String::new()),
                        Some(_) => None,
                    };
                }
                inside.push(if matches!(event, Event::MappingStart(..)) { Inside::Table(None) } else { Inside::List });
            }
            Event::MappingEnd | Event::SequenceEnd => drop(inside.pop()),
            Event::Alias(_) => {
                if let Some(Inside::Table(key)) = inside.last_mut() {
                    *key = None;
                }
            }
            _ => {}
        }
    }
    Ok(images)
}

/// What has been told of a job.
#[derive(Default)]
struct Told {
    ended: BTreeSet<String>,
    resting: BTreeSet<String>,
}

impl Told {
    /// Prints a line for each image that has ended since, and on a terminal how far the others are.
    fn tell(&mut self, job: &WarmJob) -> Result<(), CommandError> {
        let is_screen = std::io::stderr().is_terminal();
        let clear = if is_screen { "\r\x1b[K" } else { "" };
        for image in &job.images {
            let is_ended = matches!(image.state.as_str(), "done" | "failed");
            if is_ended && self.ended.insert(image.reference.clone()) {
                let _ = write!(std::io::stderr(), "{clear}");
                print(&line(image))?;
            } else if image.state == "resting" && self.resting.insert(image.reference.clone()) {
                let _ = write!(std::io::stderr(), "{clear}");
                print(&format!("{}  {}\n", image.reference, image.why.as_deref().unwrap_or_default()))?;
            }
        }
        if is_screen && !job.done {
            let of = |of: fn(&WarmImage) -> u64| job.images.iter().map(of).sum::<u64>();
            let (done, all) = (of(|image| image.bytes_done), of(|image| image.bytes));
            let (ended, count) = (self.ended.len(), job.images.len());
            // A progress line that cannot be shown is no reason to stop.
            let _ = write!(std::io::stderr(), "{clear}{ended} of {count} images, {} of {}", size(done), size(all));
        }
        Ok(())
    }
}

fn line(image: &WarmImage) -> String {
    match &image.why {
        Some(why) => format!("{}  failed: {why}\n", image.reference),
        None => format!(
            "{}  {} objects, {}, of which {} came from upstream\n",
            image.reference,
            image.objects,
            size(image.bytes),
            size(image.fetched)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_an_image_a_line_and_comments() {
        let text = "# ours\nalpine:3.20\n\n  ghcr.io/a/b:1   # why\nquay.io/x@sha256:00\n";
        assert_eq!(listed(text), ["alpine:3.20", "ghcr.io/a/b:1", "quay.io/x@sha256:00"]);
    }

    /// As Docker 29 and 20.10 print it.
    #[test]
    fn what_docker_images_prints_is_a_list() {
        let text = "REPOSITORY          TAG       IMAGE ID       CREATED       SIZE\nalpine              3.20      beefdbd8a1da   2 days ago    8MB\n<none>              <none>    0123456789ab   3 days ago    8MB\nghcr.io/a/b         1         0123456789ab   3 days ago    8MB\n";
        assert_eq!(listed(text), ["alpine:3.20", "ghcr.io/a/b:1"]);
    }

    #[test]
    fn manifests_name_images_wherever_containers_are() {
        let yaml = "apiVersion: apps/v1\nkind: Deployment\nspec:\n  template:\n    spec:\n      initContainers:\n      - {name: a, image: \"alpine:3.20\"}\n      containers:\n      - name: b\n        image: ghcr.io/a/b:1\n        env:\n        - {name: image, value: no}\n---\nkind: Pod\nspec:\n  containers: [{image: busybox}]\n";
        assert_eq!(in_manifests(yaml).expect("YAML"), ["alpine:3.20", "ghcr.io/a/b:1", "busybox"]);
        let json = r#"{"items": [{"spec": {"containers": [{"image": "nginx:1", "name": "x"}]}}]}"#;
        assert_eq!(in_manifests(json).expect("JSON"), ["nginx:1"]);
        // A chart's values have a table there, which is no image.
        assert_eq!(in_manifests("image:\n  repository: a\n  tag: b\n").expect("YAML"), Vec::<String>::new());
        assert!(in_manifests("a: [").is_err());
    }
}
