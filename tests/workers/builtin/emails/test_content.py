"""Headers, images inside the HTML, its text and styles, languages and layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from support.builtin.servers import Server, send
from support.builtin.tools import put

from penstock.producers.storage import FileStorage
from penstock.schemas.builtin.emails import Attachment, SendEmail
from penstock.workers import Context, Permanent
from penstock.workers.builtin.emails.mailers.mailer import Mailer

PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")


def mail(**fields: object) -> SendEmail:
    return SendEmail(**{"to": "a@example.com", "subject": "x", "text": "x", **fields})  # type: ignore[arg-type]


def write(folder: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return str(folder)


def test_own_headers_arrive(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    headers = {"X-Campaign": "Spring ☃", "In-Reply-To": "<1@example.com>", "Auto-Submitted": "auto-replied"}
    send(mailer, ctx, storage, mail(headers=headers))
    ((_, _, received),) = server.mails
    assert {name: received[name] for name in headers} == headers
    assert received.get_all("Auto-Submitted") == ["auto-replied"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-A": "b\r\nBcc: victim@example.com"}, "without line breaks"),
        ({"X-A\r\nBcc": "victim@example.com"}, "not a header's name"),
        ({"X A": "b"}, "not a header's name"),
        ({"": "b"}, "not a header's name"),
        ({"X-A": " "}, "printable text"),
        ({"X-A": "x" * 999}, "at most 998"),
        ({"Bcc": "victim@example.com"}, "written by Penstock"),
        ({"message-id": "<1@x>"}, "written by Penstock"),
        ({"Content-Type": "text/html"}, "written by Penstock"),
        ({"DKIM-Signature": "v=1"}, "written by Penstock"),
        ({"X-A": "1", "x-a": "2"}, "twice"),
    ],
)
def test_a_header_that_could_forge_the_mail_is_refused(headers: dict[str, str], expected: str):
    with pytest.raises(ValidationError, match=expected):
        mail(headers=headers)


def test_images_are_shown_inside_the_html(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    put(storage, "logo.gif", PIXEL)
    put(storage, "terms.txt", b"terms")
    attachments = (
        Attachment(key="terms.txt"),
        Attachment(key="logo.gif", content_id="logo"),
        Attachment(key="logo.gif", content_id="foot.er"),
    )
    html = '<img src="cid:logo" alt="Logo"><img src=cid:foot.er>'
    send(mailer, ctx, storage, mail(html=html, attachments=attachments))
    ((_, _, received),) = server.mails
    assert received.get_content_type() == "multipart/mixed"
    assert [part.get_filename() for part in received.iter_attachments()] == ["terms.txt"]
    related = received.get_body(("related",))
    assert related is not None
    images = [part for part in related.iter_parts() if part.get_content_maintype() == "image"]
    assert [(part["Content-ID"], part.get_content_disposition()) for part in images] == [
        ("<logo>", "inline"),
        ("<foot.er>", "inline"),
    ]
    assert [part.get_payload(decode=True) for part in images] == [PIXEL, PIXEL]
    body, plain = received.get_body(("html",)), received.get_body(("plain",))
    assert body is not None
    assert plain is not None
    assert "cid:logo" in body.get_content()
    assert plain.get_content().strip() == "x"


def test_an_image_without_its_other_half_is_named(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    put(storage, "logo.gif", PIXEL)
    with pytest.raises(Permanent, match=r"shows cid:logo, and no attachment"):
        send(mailer, ctx, storage, mail(html="<img src='cid:logo'>"))
    with pytest.raises(Permanent, match=r"'logo\.gif' has content_id 'logo', and the mail has no HTML"):
        send(mailer, ctx, storage, mail(attachments=(Attachment(key="logo.gif", content_id="logo"),)))
    with pytest.raises(ValidationError, match="same content_id"):
        mail(html="x", attachments=[{"key": "a", "content_id": "x"}, {"key": "b", "content_id": "x"}])
    assert server.mails == []


def test_html_alone_gets_a_text(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    html = "<style>p{}</style><h1>Grüße</h1><p>See <a href='https://x.example/?a=1&amp;b=2'>this</a>.</p><ul><li>a<li>b</ul>"
    send(mailer, ctx, storage, mail(text=None, html=html))
    ((_, _, received),) = server.mails
    assert received.get_content_type() == "multipart/alternative"
    plain = received.get_body(("plain",))
    assert plain is not None
    text = plain.get_content().replace("\r\n", "\n")
    assert text.startswith("Grüße\n\nSee [this](https://x.example/?a=1&b=2).\n")
    assert "* a\n  * b" in text


def test_styles_are_inlined_and_nothing_is_loaded(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, tmp_path: Path
):
    (tmp_path / "secret.css").write_text("p { color: blue }")
    html = (
        "<html><head><style>p { color: red } @media (max-width: 9px) { p { color: green } }</style>"
        f'<link rel="stylesheet" href="file://{tmp_path}/secret.css"></head><body><p>ä &lt;b&gt;</p></body></html>'
    )
    send(mailer, ctx, storage, mail(html=html))
    send(mailer, ctx, storage, mail(html=html), inline_css=False)
    first, second = (received.get_body(("html",)).get_content() for _, _, received in server.mails)  # type: ignore[union-attr]
    assert '<p style="color: red;">ä &lt;b&gt;</p>' in first
    assert "@media" in first
    assert "blue" not in first
    assert second.strip() == html


def test_languages_fall_back_part_by_part_of_their_name(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, tmp_path: Path
):
    folder = write(
        tmp_path / "templates",
        {
            "orders/shipped.subject.txt": "Shipped",
            "orders/shipped.txt": "in {{ locale }}",
            "de/orders/shipped.subject.txt": "Versandt",
            "de/orders/shipped.txt": "auf {{ locale }}",
            "de-AT/orders/shipped.subject.txt": "Aufgegeben",
            "de-AT/orders/shipped.txt": "Servus",
        },
    )
    for locale in ("de-AT", "de-CH", "fr", None):
        send(
            mailer,
            ctx,
            storage,
            mail(subject=None, text=None, template="orders/shipped", locale=locale),
            templates=folder,
        )
    assert [received["Subject"] for _, _, received in server.mails] == ["Aufgegeben", "Versandt", "Shipped", "Shipped"]
    assert server.mails[1][2].get_content().strip() == "auf de-CH"
    with pytest.raises(ValidationError, match="locale needs a template"):
        mail(locale="de")
    for wrong in ("../de", "de/at", ""):
        with pytest.raises(ValidationError):
            mail(subject=None, text=None, template="x", locale=wrong)


def test_templates_share_a_layout(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage, tmp_path: Path):
    folder = write(
        tmp_path / "templates",
        {
            "layouts/base.html": "<html><body><h1>Shop</h1>{% block body %}{% endblock %}</body></html>",
            "orders/paid.html": "{% extends 'layouts/base.html' %}{% block body %}<p>{{ name }}</p>{% endblock %}",
            "orders/paid.subject.txt": "Paid",
        },
    )
    job = mail(subject=None, text=None, template="orders/paid", variables={"name": "<Ada>"})
    send(mailer, ctx, storage, job, templates=folder)
    body, plain = (server.mails[0][2].get_body((kind,)) for kind in ("html", "plain"))
    assert body is not None
    assert plain is not None
    assert "<h1>Shop</h1><p>&lt;Ada&gt;</p>" in body.get_content()
    assert "<Ada>" in plain.get_content()
    for wrong in ("../secret", "/etc/passwd", "orders//paid", "orders/../paid", "orders/"):
        with pytest.raises(ValidationError):
            mail(subject=None, text=None, template=wrong)


def test_a_long_word_of_a_header_stays_whole(mailer: Mailer, server: Server, ctx: Context, storage: FileStorage):
    headers = {
        "In-Reply-To": f"<{'x' * 100}@example.com>",
        "References": " ".join(f"<{name * 90}@example.com>" for name in "abc"),
        "X-Short": "word " * 40 + "end",
        "X-Name": "Grüße " * 40 + "end",
    }
    send(mailer, ctx, storage, mail(headers=headers))
    ((_, _, received),) = server.mails
    assert {name: received[name] for name in headers} == headers
    raw = dict(received.raw_items())
    assert "=?" not in raw["In-Reply-To"] + raw["References"]
    assert raw["References"].count("\n") == 2


def test_a_mail_can_be_unsubscribed_from_with_one_click(
    mailer: Mailer, server: Server, ctx: Context, storage: FileStorage
):
    url = "https://shop.example/unsubscribe?token=" + "a1B2" * 50
    send(mailer, ctx, storage, mail(unsubscribe_url=url))
    ((_, _, received),) = server.mails
    assert dict(received.raw_items())["List-Unsubscribe"] == f"<{url}>"
    assert received["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert "token" not in repr(mail(unsubscribe_url=url))


@pytest.mark.parametrize(
    "fields",
    [
        {"unsubscribe_url": "http://shop.example/u"},
        {"unsubscribe_url": "https://shop.example/u>\r\nBcc: x"},
        {"unsubscribe_url": "https://shop.example/u>,<mailto:x@example.com"},
        {"unsubscribe_url": "https://shop.example/u", "cc": "b@example.com"},
        {"unsubscribe_url": "https://shop.example/u", "headers": {"list-unsubscribe": "<x>"}},
    ],
)
def test_a_wrong_address_to_unsubscribe_is_refused(fields: dict[str, object]):
    with pytest.raises(ValidationError):
        mail(**fields)
