//! Promise: lists lead from page to page, whoever has them.

use serde_json::json;

use crate::clients::skopeo_lists_tags;
use crate::support::hub::profiles::quay_before_2024;
use crate::support::{
    Fault, Hub, Image, Kind, Larder, LinkForm, On, Options, PageToken, Paging, RepositoryConfig, get, repository_config,
};

fn opaque(page_size: usize) -> Options {
    let paging = Paging { next: "next_page", token: PageToken::Opaque, link: LinkForm::Absolute, ..Paging::default() };
    Options { paging, page_size, ..Options::default() }
}

async fn hub_with_tags(options: Options, tags: &[&str]) -> Hub {
    let hub = Hub::start(options).await;
    let image = Image::new(1);
    hub.push_image("team/app", tags[0], &image);
    for tag in tags {
        hub.tag("team/app", tag, &image.manifest.digest);
    }
    hub
}

/// The path and query of the next page, if there is one.
fn next(answer: &crate::support::Answer) -> Option<String> {
    let link = answer.header("link").strip_prefix('<')?;
    Some(link.split_once('>').expect("a link").0.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_asked_of_the_upstream_that_named_it() {
    let first = hub_with_tags(opaque(2), &["a1", "a2", "a3", "a4", "a5"]).await;
    let second = hub_with_tags(opaque(2), &["b1", "b2", "b3"]).await;
    let larder = Larder::start(repository_config("hub", &[&first, &second])).await;
    let begin = format!("{}/v2/hub/team/app/tags/list", larder.url());
    // The first one has the list; the second says that it does not know the token.
    let page = get(&begin).await;
    assert_eq!(page.json()["tags"], json!(["a1", "a2"]));
    let next_of_first = next(&page).expect("a page");
    let page = get(format!("{}{next_of_first}", larder.url())).await;
    assert_eq!(page.json()["tags"], json!(["a3", "a4"]), "{}", first.summary());
    assert_eq!(second.requests().len(), 0, "{}", second.summary());

    // While the first is away, the second begins a list of its own and goes on with it when the first is back.
    let away = first.fault(On::any(), Fault::status(404));
    let page = get(format!("{begin}?n=1")).await;
    assert_eq!(page.json()["tags"], json!(["b1"]));
    away.lift();
    first.take_requests();
    let page = get(format!("{}{}", larder.url(), next(&page).expect("a page"))).await;
    assert_eq!((page.status, &page.json()["tags"]), (200, &json!(["b2"])), "{}", second.summary());
    assert_eq!(first.requests().len(), 0, "it is not asked what it cannot know: {}", first.summary());

    // And a page of the one is not asked of the other, even if the one fails.
    let third = next(&get(format!("{}{next_of_first}", larder.url())).await).expect("a page");
    first.fault(On::any(), Fault::status(404));
    second.take_requests();
    let refused = get(format!("{}{third}", larder.url())).await;
    assert_eq!((refused.status, second.requests().len()), (404, 0), "{}", second.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_by_its_last_entry_is_had_of_any_upstream() {
    let paged = || Options { page_size: 2, ..Options::default() };
    let first = hub_with_tags(paged(), &["1", "2", "3", "4"]).await;
    let second = hub_with_tags(paged(), &["1", "2", "3", "4"]).await;
    let larder = Larder::start(repository_config("hub", &[&first, &second])).await;
    let page = get(format!("{}/v2/hub/team/app/tags/list", larder.url())).await;
    first.fault(On::any(), Fault::status(404));
    let page = get(format!("{}{}", larder.url(), next(&page).expect("a page"))).await;
    assert_eq!((page.status, &page.json()["tags"]), (200, &json!(["3", "4"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_lists_tags_by_as_many_requests_as_there_are_pages() {
    let tags: Vec<_> = (10..35).map(|number| format!("1.{number}")).collect();
    let named: Vec<_> = tags.iter().map(String::as_str).collect();
    let by_number = Paging { size: "page_size", next: "page", token: PageToken::Number, link: LinkForm::Odd };
    for options in
        [Options { page_size: 10, ..Options::default() }, opaque(10), Options { paging: by_number, ..opaque(10) }]
    {
        let hub = hub_with_tags(options, &named).await;
        let larder = Larder::start(repository_config("hub", &[&hub])).await;
        let listed = skopeo_lists_tags(&format!("{}/hub/team/app", larder.door("registry"))).await;
        let listed: serde_json::Value = serde_json::from_str(&listed.expect("a list")).expect("JSON");
        assert_eq!(listed["Tags"], json!(tags));
        assert_eq!(hub.requests().len(), 3, "{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_repeats_its_page_sends_nobody_in_a_circle() {
    let hub = hub_with_tags(Options::default(), &["1", "2"]).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let body = r#"{"name":"team/app","tags":["1","2"]}"#;
    let link = "</v2/team/app/tags/list?last=2&n=2>; rel=\"next\"";
    hub.fault(On::tags(), Fault::reply(200, &[("content-type", "application/json"), ("link", link)], body));
    let page = get(format!("{}/v2/hub/team/app/tags/list?n=2", larder.url())).await;
    let again = get(format!("{}{}", larder.url(), next(&page).expect("a page"))).await;
    assert_eq!((again.status, next(&again)), (200, None));
    assert_eq!(hub.requests().len(), 2, "{}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_goes_upstream_and_comes_back_as_it_was_written() {
    let hub = hub_with_tags(Options::default(), &["1"]).await;
    let config = RepositoryConfig::new("hub").set("namespace = \"reg.example\"\nmax_age = \"1h\"").upstream(&hub);
    let larder = Larder::start(config).await;
    let body = r#"{"name":"team/app","tags":["1"]}"#;
    let link = "<https://r.example/v2/team/app/tags/list?next_page=gA%3D%3d+/=&n=2&n=2&ns=elsewhere>; rel=\"next\"";
    hub.fault(On::tags(), Fault::reply(200, &[("content-type", "application/json"), ("link", link)], body));
    let path = "/v2/team/app/tags/list";
    let page = get(format!("{}{path}?page=1&ns=reg.example&page_size=%35&x", larder.url())).await;
    assert_eq!(page.header("link"), format!("<{path}?next_page=gA%3D%3d+/=&n=2&n=2&ns=reg.example>; rel=\"next\""));
    get(format!("{}{}", larder.url(), next(&page).expect("a page"))).await;
    let asked: Vec<_> = hub.take_requests().into_iter().map(|request| request.query).collect();
    assert_eq!(asked, ["page=1&page_size=%35&x", "next_page=gA%3D%3d+/=&n=2&n=2"]);

    // Each page is kept by its query, within bounds.
    let long = |length: usize| format!("{}{path}?next_page={}&ns=reg.example", larder.url(), "a".repeat(length));
    for (url, second) in [(long(2_000), "HIT"), (long(2_048), "MISS")] {
        get(&url).await;
        assert_eq!(get(&url).await.header("x-cache"), second);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_registry_does_not_know_is_no_empty_list() {
    let mut profile = quay_before_2024::profile();
    profile.options.page_size = 1;
    let hub = Hub::start(profile.options).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for list in ["tags/list".to_owned(), format!("referrers/{}", image.manifest.digest)] {
        let answer = get(format!("{}/v2/hub/team/app/{list}?next_page=nonsense", larder.url())).await;
        let is_known = hub.count(|request| matches!(request.kind, Kind::Tags | Kind::Referrers)) > 0;
        assert!(is_known && answer.status >= 400, "{list}: {} {}", answer.status, answer.text());
    }
}
