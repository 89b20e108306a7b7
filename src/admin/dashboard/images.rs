//! What is cached, as images: search, order, and how much of each is there.

use std::sync::Arc;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Page, Tab, Visitor, inline_error, page};
use super::{pulls, show};
use crate::ops::{self, Image, ImageOrder, ImageSearch, Images};
use crate::services::Services;

/// Images on a page.
const PAGE: usize = 100;
/// The orders: the word in the query, and its words in the page.
const ORDERS: [(&str, &str, ImageOrder); 3] =
    [("", "name", ImageOrder::Reference), ("use", "last use", ImageOrder::LastUse), ("size", "size", ImageOrder::Size)];

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Asked {
    q: String,
    sort: String,
    last: String,
}

/// Shows some of the images.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, Query(asked): Query<Asked>) -> Page {
    let order = ORDERS.iter().find(|(word, ..)| *word == asked.sort).unwrap_or(&ORDERS[0]).2;
    let text = asked.q.trim().to_lowercase();
    let search = ImageSearch { text, order, last: asked.last.clone(), count: PAGE };
    let found = ops::find(&services.cache, search).await;
    let content = html! {
        div.heading { h1 { "Images" } }
        form.filters action="/images" method="get" {
            label.wide { span { "Text" } input type="search" name="q" value=(asked.q) placeholder="a part of the name" autocomplete="off" spellcheck="false"; }
            label { span { "Sort by" } select name="sort" {
                @for (word, name, _) in ORDERS { option value=(word) selected[word == asked.sort] { (name) } }
            } }
            button type="submit" { "Show" }
        }
        @match &found {
            Ok(images) => (list(images, &asked, order, &visitor)),
            Err(error) => (inline_error(&error.to_string())),
        }
    };
    page(&visitor, Tab::Images, "Images", "", &content)
}

fn list(found: &Images, asked: &Asked, order: ImageOrder, visitor: &Visitor) -> Markup {
    let is_sorted = order != ImageOrder::Reference;
    html! {
        section.panel #images data-changes aria-label="Cached images" {
            @if is_sorted && found.next.is_some() {
                p.hint { "There are very many images: these are the first of a part of them. Write a part of the name to see all that fit." }
            }
            @if found.images.is_empty() { (empty(asked, found.next.is_some())) }
            @else { (table(&found.images, visitor)) }
        }
        nav.pager aria-label="Pages of images" {
            @if !asked.last.is_empty() { a href=(asked.page("")) { "First page" } }
            @if let (Some(next), false) = (&found.next, is_sorted) { a href=(asked.page(next)) { "Next page" } }
        }
    }
}

impl Asked {
    fn page(&self, last: &str) -> String {
        show::link("/images", &[("q", &self.q), ("sort", &self.sort), ("last", last)])
    }
}

fn empty(asked: &Asked, is_more: bool) -> Markup {
    if is_more {
        return show::nothing("None here; there are more pages.", &html! { "Much was looked at for this page." });
    }
    if !asked.q.is_empty() {
        let next = html! { a href="/images" { "Show all images" } ", or " a href=(show::link("/explain", &[("reference", &asked.q)])) { "explain what a pull would do" } "." };
        return show::nothing("No cached image has this in its name.", &next);
    }
    let next = html! { a href="/connect" { "Connect a client" } " and pull an image, and it is listed here." };
    show::nothing("Nothing is cached yet.", &next)
}

fn table(images: &[Image], visitor: &Visitor) -> Markup {
    html! {
        div.scroll role="region" aria-label="Table of images" tabindex="0" {
            table.images {
                thead { tr {
                    th scope="col" { "Image" }
                    th scope="col" { "How much is there" }
                    th.number scope="col" { "Size" }
                    th.number scope="col" { "Objects" }
                    th scope="col" { "Last use" }
                    @if visitor.may_change { th.needs-js scope="col" { "Actions" } }
                } }
                tbody { @for image in images { tr {
                    th scope="row" {
                        a href=(show::link("/image", &[("reference", &image.reference)])) { (show::reference(&image.reference)) }
                        @if image.pinned { " " (show::chip("pinned", "pinned")) }
                        div.meta title=(image.digest) { (show::short(&image.digest)) }
                    }
                    td { (extent(image)) }
                    td.number { (show::bytes(image.size)) }
                    td.number { (show::count(image.objects)) }
                    td { (show::ago_of(&image.last_use)) }
                    @if visitor.may_change { td.needs-js { (pulls::actions(&image.reference, Some(image.pinned), visitor)) } }
                } } }
            }
        }
    }
}

/// Says how much of an image is there.
fn extent(image: &Image) -> Markup {
    let all = image.objects + image.missing;
    html! {
        @if image.missing == 0 { (show::chip("good", "all of it")) }
        @else if let Some(manifests) = image.manifests {
            (show::chip("part", &format!("{} of {}", manifests.whole, manifests.all)))
            " " span title="With what is attached to them, such as attestations" { "platforms" }
        } @else {
            (show::chip("part", &format!("{} of {}", image.objects, all))) " objects"
        }
    }
}
