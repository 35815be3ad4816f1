# Portrait Atelier with its ComfyUI and torch, from the pins in this folder. See docs/scale.md.
FROM python:3.12-slim
# What OpenCV and ComfyUI's media nodes look for.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/portrait-atelier
# The set-up first: it is made anew only when a pin changes.
COPY comfyui-pin.txt comfyui-oldest.txt requirements-environment.txt requirements-evaluate.txt requirements-ray.txt requirements-test.txt ./
COPY headless/ headless/
RUN python3 -c "from headless.environment import environment, install; from headless.progress import Display; \
    display = Display(); install(environment(display), display, 'ray', '--ray')"
COPY . .
ENTRYPOINT ["/opt/portrait-atelier/.atelier/venv/bin/python", "atelier.py"]
CMD ["--help"]
