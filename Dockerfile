# Trains the quickstart; building needs the network, running does not. docs/docker.md has the rest.
#   docker build -t mtl_transformer . && docker run mtl_transformer
#   docker build --build-arg DEVICE=gpu -t mtl_transformer:gpu . && docker run --gpus all mtl_transformer:gpu
ARG DEVICE=cpu

FROM python:3.11-slim AS build
ARG DEVICE
WORKDIR /app
# What changes least comes first: a change of code reuses the layers with dependencies, data and encoder.
COPY LICENSE pyproject.toml setup.py constraints.txt ./
COPY launch/install.sh launch/
COPY mtl_dist/__init__.py mtl_dist/
RUN PIP_NO_CACHE_DIR=1 DEVICE=$DEVICE launch/install.sh
COPY mtl_dist/errors.py mtl_dist/
COPY mtl_dist/quickstart mtl_dist/quickstart
RUN PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/app/constraints.txt .venv/bin/python -m mtl_dist.quickstart
# What no run uses: installers, headers, tests, and the bytecode of all but what a run imports.
RUN cd .venv/lib/python3*/site-packages \
    && rm -rf pip pip-* ../../../bin/pip* setuptools setuptools-* torch/include torch/share torch/test pyarrow/include \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -name '*.a' -delete \
    && find . -type d -name tests ! -path './numpy/*' -prune -exec rm -rf {} + \
    && find . -type d -name __pycache__ -prune -exec rm -rf {} + \
    && /app/.venv/bin/python -c "import accelerate.commands.launch, datasets, pandas, psutil, omegaconf, pydantic, typer, wandb, \
torch.distributed.run, torch.optim, torch.distributed.fsdp, transformers.models.bert.modeling_bert, \
transformers.models.auto.modeling_auto"

FROM python:3.11-slim
ARG DEVICE
RUN useradd --uid 1000 --create-home trainer
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY --from=build /app/assets assets
COPY . .
ENV PATH=/app/.venv/bin:$PATH HOME=/home/trainer \
    HF_HUB_OFFLINE=1 WANDB_MODE=offline MTL_DIST_DEVICE=$DEVICE
# Any user may write to these two, and a run writes nowhere else but to /tmp.
RUN python -m compileall -q mtl_dist launch && install --directory --mode 1777 runs && chmod 1777 /home/trainer
USER trainer
ENTRYPOINT ["python", "/app/launch/container.py"]
