"""Puts the alarms on the Prefect server, as automations that call webhooks:

    python -m infra.automations --page https://… --inform https://…

*Page* calls a person: a run has failed and nothing tries it again, an event was not delivered for
an hour, a release waits for approval, `tend` was not heard of for an hour. *Inform* says what was
released, rejected or held. Without --inform nobody is informed.

It can be repeated: each automation is found by its name and updated, and stays off if somebody has
switched it off. The URLs may be given as BURNISH_PAGE_URL and BURNISH_INFORM_URL, too; the server
keeps them as secrets. What is sent is JSON with a `text`, as chat services take it.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events import EventTrigger, Posture
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.events import ResourceSpecification

from flows.automations import put_automation
from flows.deployments import TAG
from flows.prefect_server import lasting_server
from tasks.release.announce import EVENT_TYPE
from tasks.tend import alarms

PAGE, INFORM = "page", "inform"
ABSENT = timedelta(hours=1)
_SAID = "{{ event.payload.message }}"


class Alarm(NamedTuple):
    """An automation.

    Attributes:
        what: Its name.
        urgency: `page` or `inform`.
        event: What it waits for.
        text: What it says, as a template over the event.
        absent: How long the event must be missing; 0 if it must happen.
    """

    what: str
    urgency: str
    event: str
    text: str = _SAID
    absent: timedelta = timedelta(0)


ALARMS = (
    Alarm("a run failed", PAGE, alarms.RUN_FAILED),
    Alarm("a delivery is owed", PAGE, alarms.DELIVERY_OWED),
    Alarm("a release waits for approval", PAGE, alarms.APPROVAL_WAITING),
    Alarm(
        "tend is silent",
        PAGE,
        alarms.TEND_DONE,
        "tend was not heard of for an hour: runs of lost machines stay Running, and nobody is "
        "called about failures. Look at the runs of tend/burnish and at the worker of pool watch.",
        ABSENT,
    ),
    Alarm(
        "released",
        INFORM,
        EVENT_TYPE,
        "{{ event.payload.data.model }}: version {{ event.payload.data.version }} is deployed on "
        "{{ event.payload.data.channel }}"
        "{% if event.payload.data.cause == 'rollback' %}, rolled back by "
        "{{ event.payload.data.by }}: {{ event.payload.data.reason }}{% endif %}",
    ),
    Alarm(
        "rejected",
        INFORM,
        "prefect.flow-run.Rejected",
        "{{ flow_run.name }}: {{ flow_run.state.message }}",
    ),
    Alarm("held", INFORM, alarms.HELD),
)


def main(arguments: list[str] | None = None) -> int:
    """Put the automations on the server, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="They may be set as BURNISH_PAGE_URL and BURNISH_INFORM_URL instead.",
    )
    parser.add_argument("--page", default=os.environ.get("BURNISH_PAGE_URL", ""), metavar="URL")
    parser.add_argument("--inform", default=os.environ.get("BURNISH_INFORM_URL", ""), metavar="URL")
    wanted = parser.parse_args(arguments)
    urls = {PAGE: wanted.page, INFORM: wanted.inform}
    for urgency, url in urls.items():
        if url and not url.startswith(("https://", "http://")):
            parser.error(f"--{urgency}: expected a URL that begins with https://")
    if not wanted.page:
        parser.error("--page: found no URL; expected where a person is called")
    with lasting_server():
        for name in put_alarms(urls):
            print(name)
    return 0


def put_alarms(urls: dict[str, str], absent: timedelta = ABSENT) -> list[str]:
    """Create or update the automations.

    Args:
        urls: Of the webhook for each urgency; empty for one that nobody wants.
        absent: How long `tend` must have been silent.

    Returns:
        Their names.
    """
    made = []
    for urgency, url in urls.items():
        if not url:
            continue
        block = UUID(str(Webhook(url=url).save(f"burnish-{urgency}", overwrite=True)))
        for alarm in ALARMS:
            if alarm.urgency == urgency:
                automation = _automation(alarm, block, absent)
                with get_client(sync_client=True) as client:
                    put_automation(client, automation)
                made.append(automation.name)
    return made


def _automation(alarm: Alarm, block: UUID, absent: timedelta) -> AutomationCore:
    """An automation that calls a webhook."""
    trigger = EventTrigger(
        expect={alarm.event},
        posture=Posture.Proactive if alarm.absent else Posture.Reactive,
        threshold=1,
        within=absent if alarm.absent else timedelta(0),
    )
    page = "" if alarm.absent else "{{ event.payload.page }}"
    if alarm.event.startswith("prefect."):
        # Runs of other flows on the same server are not ours.
        tag = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
        trigger = trigger.model_copy(update={"match_related": ResourceSpecification(tag)})
        page = "{{ flow_run | ui_url }}"
    payload = (
        f'{{"text": {_json(alarm.text)}, "urgency": "{alarm.urgency}", '
        f'"alarm": "{alarm.what}", "page": {_json(page)}}}'
    )
    return AutomationCore(
        name=f"burnish {alarm.urgency}: {alarm.what}",
        description=f"Made by `python -m infra.automations`: {alarm.event}",
        trigger=trigger,
        actions=[CallWebhook(block_document_id=block, payload=payload)],
    )


def _json(template: str) -> str:
    """A template whose result is one JSON string, whatever it has in it."""
    return "{% filter tojson %}" + template + "{% endfilter %}"


if __name__ == "__main__":
    sys.exit(main())
