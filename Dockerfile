# Trains the quickstart on the CPU; building needs the network, running does not:
#   docker build -t mtl_transformer . && docker run mtl_transformer
# Arguments take the place of the quickstart's; a folder of user 1000 mounted on /app/runs keeps the results:
#   docker run -v "$PWD/runs:/app/runs" mtl_transformer --config recipes/quickstart.yaml optimizer.lr=1e-4
FROM python:3.11-slim

RUN useradd --uid 1000 --create-home trainer
WORKDIR /app

# What changes least comes first: a change of code reuses the layers with dependencies, data and encoder.
COPY LICENSE pyproject.toml constraints.txt ./
COPY launch/install.sh launch/
COPY mtl_dist/__init__.py mtl_dist/
RUN PIP_NO_CACHE_DIR=1 launch/install.sh
ENV PATH=/app/.venv/bin:$PATH
COPY mtl_dist/errors.py mtl_dist/quickstart.py mtl_dist/
RUN PIP_CONSTRAINT=/app/constraints.txt python -m mtl_dist.quickstart
COPY . .

RUN install --directory --owner trainer runs
USER trainer
ENV HOME=/home/trainer HF_HUB_OFFLINE=1 WANDB_MODE=offline
ENTRYPOINT ["accelerate", "launch", "--quiet", "--config_file", "accelerate_configs/cpu.yaml", "launch/train.py"]
CMD ["--config", "recipes/quickstart.yaml"]
