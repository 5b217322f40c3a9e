"""`nexapod image ...`: the container images that this peer can give to others; and what a job file's image is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from nexapod.cli.client import Client
from nexapod.cli.console import byte_progress, facts, note, print_json, say, table
from nexapod.cli.errors import FileChanged, NothingThere, Refused
from nexapod.cli.jobfile import Plan
from nexapod.cli.quantities import show_size
from nexapod.cli.safe import safe
from nexapod.protocol.image_names import registry_host
from nexapod.protocol.limits import IMAGE_NAME_MAX

ADD_TIMEOUT_S: Final = 3600.0
"""An image is unpacked, hashed and stored before the daemon answers."""
DIGITS_SHOWN: Final = 19


def add(client: Client, reference: str, platform: str, *, as_json: bool) -> None:
    """A file of that name is an archive; anything else, an image of the daemon's engine. Raises CliError."""
    path = Path(reference)
    if os.path.isfile(path):  # unlike Path's, never an error
        answer = add_archive(client, path, platform, quiet=as_json)
    else:
        answer = _add_named(client, reference, platform)
    if as_json:
        print_json(answer)
        return
    say(answer["image"])
    note(
        f"{safe(answer['platform'])}, {len(answer['blobs']) - 1} layers, {show_size(answer['size'])}: "
        f"{show_size(answer['new_bytes'])} of it new here"
    )


def add_archive(client: Client, path: Path, platform: str, *, quiet: bool) -> dict[str, Any]:
    """Upload an archive; the image in it. Raises CliError."""
    try:
        with path.open("rb") as source:
            size = path.stat().st_size
            with byte_progress(path.name, size, quiet=quiet) as told:
                where = f"/v1/images/archive?platform={quote(_plain(platform), safe='')}"
                answer: dict[str, Any] = client.send(where, source, size, told, ADD_TIMEOUT_S)
                return answer
    except OSError as error:
        raise FileChanged(f"{safe(path)} cannot be read: {error.strerror}") from None


def _add_named(client: Client, reference: str, platform: str) -> dict[str, Any]:
    body = {"name": _name(reference), "platform": _plain(platform)}
    try:
        answer: dict[str, Any] = client.post("/v1/images", body, timeout_s=ADD_TIMEOUT_S)
    except NothingThere as error:
        facts_told = f"{safe(reference)} is no file, and no image of the daemon's container engine: {error.facts}"
        raise NothingThere(facts_told, error.remedy) from None
    return answer


def show_all(client: Client, *, as_json: bool) -> None:
    images = client.get("/v1/images")
    if as_json:
        print_json(images)
        return
    if not images:
        note("No image has been added. Add one: nexapod image add NAME|ARCHIVE.tar")
    rows = [
        (i["image"][:DIGITS_SHOWN], i["platform"], len(i["blobs"]) - 1, show_size(i["size"]), ", ".join(i["names"]))
        for i in images
    ]
    table(("image", "platform", "layers", "size", "names"), rows, right=(2, 3))


def show(client: Client, name: str, *, as_json: bool) -> None:
    image = _find(client, name)
    if as_json:
        print_json(image)
        return
    facts(
        [
            ("image", image["image"]),
            *[("name", name) for name in image["names"]],
            ("platform", image["platform"]),
            ("size", show_size(image["size"])),
            ("configuration", image["blobs"][0]),
            *[("layer", blob) for blob in image["blobs"][1:]],
        ]
    )


def remove(client: Client, name: str, *, as_json: bool) -> None:
    image = client.post("/v1/images/remove", {"name": _name(name)})
    if as_json:
        print_json(image)
        return
    say(image["image"])
    note("It is forgotten. What of it no job and no other image needs is deleted within about an hour.")


def _find(client: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/image?name={quote(_name(name), safe='')}")
    return found


def _name(text: str) -> str:
    """An image's name, to be sent to the daemon. Raises Refused."""
    if not text or len(text) > IMAGE_NAME_MAX:
        said = f"{len(text)} characters: an image's name has from 1 to {IMAGE_NAME_MAX}"
        raise Refused(said, "`nexapod image list` shows those that were added.")
    return _plain(text)


def _plain(text: str) -> str:
    """Raises Refused for bytes of a command line that are no text: neither a URL nor JSON can carry them."""
    if not text.isprintable():
        raise Refused(f"{safe(text)!r} has characters that no name and no platform has")
    return text


def with_image(client: Client, plan: Plan, *, quiet: bool) -> Plan:
    """The plan with its image named by content id, and the blobs that it is made of. Raises CliError.

    A registry's reference by digest stays as it is: workers pull it, where their owners allow it.
    """
    run = plan.body["run"]
    named = run.get("image")
    if not named or registry_host(named) or plan.image_held:
        return plan
    archive = plan.archive
    image = add_archive(client, archive, "", quiet=quiet) if archive else _known(client, named)
    if not quiet:
        note(f"image {image['image'][:DIGITS_SHOWN]} ({show_size(image['size'])}, {safe(image['platform'])})")
    body = plan.body | {"run": run | {"image": image["image"], "image_blobs": image["blobs"]}}
    if image["arch"] and not body["requires"]["arch"]:
        body |= {"requires": body["requires"] | {"arch": [image["arch"]]}}
    return replace(plan, body=body)


def _known(client: Client, name: str) -> dict[str, Any]:
    try:
        return _find(client, name)
    except NothingThere:
        remedy = (
            f"Add it first: nexapod image add {safe(name)}. If every peer that shall work holds it already, say "
            "image_held = true below [run] and name it by its content id."
        )
        raise Refused(
            f"the daemon cannot give the image {safe(name)} to other peers: it was not added", remedy
        ) from None
