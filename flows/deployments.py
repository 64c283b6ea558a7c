"""Deployments of recipes: what `burnish deploy` and `prefect deploy --all` put on the server.

Repeating it keeps whatever a person has changed in the UI meanwhile: schedules, default values,
tags, the description, the work pool. Once there, a deployment belongs to those people.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import EventTrigger, Posture
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import EntrypointType, Flow
from prefect.runner.storage import LocalStorage
from pydantic import ValidationError

from flows.automations import delete_automation, put_automation
from flows.recipe_files import full_name, read_recipe
from flows.retrain import retrain
from flows.watch import watch
from tasks.contracts.base import Contract
from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe import Recipe
from tasks.storage.store import default_store
from tasks.watch.change_event import EVENT, resource_of

POOL, TAG, SCHEDULE = "cpu", "retrain", "retrain"
# A pool of its own: a look takes seconds, and should not wait for a training to end. Its worker has
# no limit of runs, or looks that are not needed any more would wait there.
WATCH_POOL, WATCH_TAG = "watch", "watch"
SERVICE, TEND_MINUTES = "burnish", 5
NIGHTLY = "0 3 * * *"
DEFAULTS = {"changes": {}, "refresh": "nothing"}
STORE_VARIABLE = "BURNISH_STORE"
HEARTBEAT_VARIABLE, HEARTBEAT_SECONDS = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30"
"""`tend` recognizes by it that a run's machine is gone."""


class Deployed(Contract):
    """What a recipe's deployment is to be.

    Attributes:
        name: The recipe's name.
        description, tags: For lists.
        parameters: Default values of the form.
        pool: The work pool.
        job_variables: For the pool's workers. They pin the store: a worker with another one in its
            environment would keep a second log of what is deployed.
        concurrency_limit: Of runs at the same time, with what becomes of the others.
    """

    name: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, Any]
    pool: str
    job_variables: dict[str, Any]
    concurrency_limit: dict[str, Any]

    @property
    def recipe(self) -> str:
        """The recipe's name for the workers."""
        return self.parameters["recipe"]

    @property
    def store(self) -> str:
        """The store's URI."""
        return self.job_variables["env"][STORE_VARIABLE]


def deploy(
    name: str,
    pool: str = "",
    cron: str = "",
    timezone: str = "UTC",
    store: str = "",
    directory: str = "",
    take_over: bool = True,
) -> Deployed:
    """Create or update the deployment of a recipe.

    Args:
        name: A shipped recipe's name, a file, or `s3://bucket/recipe.yaml`.
        pool: The work pool; created if it is not there. Empty: as it was, or `cpu`.
        cron: When to retrain; switched on. Empty: the schedules stay as they are, and a new
            deployment gets a nightly one that is off.
        timezone: Of the schedule.
        store: The store's URI. Empty: as it was, or this process's.
        directory: The folder on the workers in which runs start. Empty: the current one.
        take_over: Whether a deployment of the same name is to retrain this recipe, even if somebody
            has given the name to another recipe.

    Raises:
        NotFound, BadRecipe: The recipe cannot be used, or the schedule.
    """
    schedule = _schedule(cron or NIGHTLY, timezone)
    named = full_name(name)
    recipe = read_recipe(named)
    with get_client(sync_client=True) as client:
        before = existing(client, recipe.name)
        other = before.parameters.get("recipe") if before else None
        if not take_over and isinstance(other, str) and other != named:
            return deployed(recipe, other, before)
        wanted = deployed(recipe, named, before, pool, store)
        ensure_pool(client, wanted.pool)
        made = retrain.to_deployment(
            name=wanted.name,
            description=wanted.description,
            tags=list(wanted.tags),
            parameters=wanted.parameters,
            work_pool_name=wanted.pool,
            job_variables=wanted.job_variables,
            concurrency_limit=ConcurrencyLimitConfig(**wanted.concurrency_limit),
            # By its module: a worker loads it from the installed package, wherever it runs.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        storage = LocalStorage(directory or str(Path.cwd()))
        first = DeploymentScheduleCreate(schedule=schedule, active=bool(cron), slug=SCHEDULE)
        identity = _apply(made, storage, [] if before else [first])
        if before and cron:
            _set_schedule(client, identity, schedule)
        deploy_watch(client, recipe, wanted, storage)
        deploy_services(client, wanted, storage)
    return wanted


def ensure_pool(client: SyncPrefectClient, name: str) -> None:
    """Create a work pool for processes if it is not there."""
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def _apply(
    made: RunnerDeployment, storage: LocalStorage, schedules: list[DeploymentScheduleCreate]
) -> UUID:
    """Put a deployment on the server; what it does not say stays as it is there."""
    made.storage = storage
    # What is set, even to nothing, replaces what is there: schedules made in the UI would go.
    made.model_fields_set.difference_update({"schedules", "paused"})
    if schedules:
        made.schedules = schedules
    return made.apply()


def deploy_watch(
    client: SyncPrefectClient, recipe: Recipe, beside: Deployed, storage: LocalStorage
) -> None:
    """Create or update the watch of a recipe's data beside its deployment; remove it if the recipe
    does not ask for one any more."""
    minutes = recipe.watch.every_minutes
    before = existing(client, recipe.name, watch)
    if not minutes:
        if before:
            client.delete_deployment(before.id)
            delete_automation(client, _wake_name(recipe.name))
        return
    ensure_pool(client, WATCH_POOL)
    made = watch.to_deployment(
        name=recipe.name,
        description=f"Looks whether the data of {recipe.name} have changed, and retrains then. "
        f"What it saw: the artifact data-{recipe.name} (/v2/artifacts/key/data-{recipe.name}).",
        tags=[WATCH_TAG, recipe.name],
        parameters={"recipe": beside.recipe},
        work_pool_name=before.work_pool_name if before else WATCH_POOL,
        job_variables=beside.job_variables,
        # A look that finds another one under way is not needed: that one looks again at its end.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy="CANCEL_NEW"),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    identity = _apply(made, storage, [])
    _set_interval(client, identity, before, minutes)
    wake = AutomationCore(
        name=_wake_name(recipe.name),
        description=f"`burnish data-changed {recipe.name}` lets the watch look at once.",
        trigger=EventTrigger(
            expect={EVENT},
            match={"prefect.resource.id": resource_of(recipe.name)},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(deployment_id=identity)],
    )
    put_automation(client, wake)


def deploy_services(client: SyncPrefectClient, beside: Deployed, storage: LocalStorage) -> None:
    """Create or update the deployments that are there once for all recipes: `tend` and
    `rollback`."""
    # These import this module.
    from flows.rollback import rollback
    from flows.tend import tend

    ensure_pool(client, WATCH_POOL)
    for each in (tend, rollback):
        before = existing(client, SERVICE, each)
        made = each.to_deployment(
            name=SERVICE,
            description=(each.description or "").partition("\n")[0],
            tags=[each.name],
            work_pool_name=before.work_pool_name if before else WATCH_POOL,
            job_variables=before.job_variables if before else beside.job_variables,
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy="CANCEL_NEW" if each is tend else "ENQUEUE"
            ),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        every = IntervalSchedule(interval=timedelta(minutes=TEND_MINUTES))
        first = DeploymentScheduleCreate(schedule=every, active=True, slug=SERVICE)
        _apply(made, storage, [first] if each is tend and not before else [])


def _wake_name(name: str) -> str:
    return f"burnish: new data of {name}"


def _set_interval(
    client: SyncPrefectClient, identity: UUID, before: DeploymentResponse | None, minutes: float
) -> None:
    """Let the watch look so often. A person may have changed its schedule, which only a recipe that
    says something else replaces."""
    slug = f"every-{minutes:g}-minutes".replace(".", "-")
    present = before.schedules if before else []
    if any(each.slug == slug for each in present):
        return
    old = [each for each in present if (each.slug or "").startswith("every-")]
    active = all(each.active for each in old)
    for each in old:
        client.delete_deployment_schedule(identity, each.id)
    schedule = IntervalSchedule(interval=timedelta(minutes=minutes))
    client.create_deployment_schedules(
        identity, [DeploymentScheduleCreate(schedule=schedule, active=active, slug=slug)]
    )


def existing(
    client: SyncPrefectClient, name: str, flow: Flow = retrain
) -> DeploymentResponse | None:
    """The deployment of a recipe as it is now; None if there is none."""
    try:
        return client.read_deployment_by_name(f"{flow.name}/{name}")
    except ObjectNotFound:
        return None


def store_of(name: str) -> str:
    """The store of a recipe's deployment; this process's if there is none."""
    with get_client(sync_client=True) as client:
        return environment_of(existing(client, name)).get(STORE_VARIABLE) or default_store()


def environment_of(deployment: DeploymentResponse | None) -> dict[str, str]:
    """The variables that a deployment sets for its runs."""
    return dict((deployment.job_variables or {}).get("env") or {}) if deployment else {}


def watched(name: str) -> bool:
    """Whether a recipe's data are watched."""
    with get_client(sync_client=True) as client:
        return existing(client, name, watch) is not None


def deployed(
    recipe: Recipe,
    named: str,
    before: DeploymentResponse | None = None,
    pool: str = "",
    store: str = "",
) -> Deployed:
    """What a recipe's deployment is to be: what it is already, and what it lacks.

    Args:
        recipe: The recipe.
        named: Its name for the workers.
        before: The deployment as it is now.
        pool, store: What was asked for; empty if nothing was.
    """
    variables = dict(before.job_variables or {}) if before else {}
    environment = environment_of(before)
    if store or STORE_VARIABLE not in environment:
        environment[STORE_VARIABLE] = store or recipe.store or default_store()
    environment.setdefault(HEARTBEAT_VARIABLE, HEARTBEAT_SECONDS)
    limit = before.global_concurrency_limit if before else None
    options = before.concurrency_options if before else None
    return Deployed(
        name=recipe.name,
        description=before.description if before and before.description else _description(recipe),
        tags=tuple(dict.fromkeys([*(before.tags if before else ()), TAG, recipe.name])),
        parameters={**DEFAULTS, **(_known_parameters(before) if before else {}), "recipe": named},
        pool=pool or (before and before.work_pool_name) or POOL,
        job_variables={**variables, "env": environment},
        concurrency_limit={
            "limit": limit.limit if limit else 1,
            "collision_strategy": options.collision_strategy.value if options else "ENQUEUE",
        },
    )


def prepare(recipe: str) -> dict[str, Any]:
    """A build step of prefect.yaml: creates or updates a recipe's deployment as `burnish deploy`
    does, and returns the values of its entry."""
    return deploy(recipe, take_over=False).model_dump(mode="json")


def _known_parameters(before: DeploymentResponse) -> dict[str, Any]:
    """The default values that people have set; those of an older form are left out."""
    properties = retrain.parameters.properties
    return {name: value for name, value in before.parameters.items() if name in properties}


def _description(recipe: Recipe) -> str:
    sources = ", ".join(recipe.data.uris)
    return (
        f"Retrain {recipe.name} ({recipe.task}) from {recipe.model.uri} on {sources}, and release "
        "it if the gate lets it through. Each run's page has a report under Artifacts."
    )


def _schedule(cron: str, timezone: str) -> CronSchedule:
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise BadRecipe(
            f"--cron {cron!r} --timezone {timezone!r}",
            error.errors()[0]["msg"],
            "a schedule such as '0 3 * * *', and a time zone such as Europe/Paris",
            "correct it",
        ) from None


def _set_schedule(client: SyncPrefectClient, deployment: Any, schedule: CronSchedule) -> None:
    for present in client.read_deployment_schedules(deployment):
        if present.slug == SCHEDULE:
            client.update_deployment_schedule(
                deployment, present.id, active=True, schedule=schedule
            )
            return
    client.create_deployment_schedules(
        deployment, [DeploymentScheduleCreate(schedule=schedule, active=True, slug=SCHEDULE)]
    )
