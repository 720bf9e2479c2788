# docker build -t fastft .                                   CPU
# docker build -t fastft --build-arg TORCH=cuda13 .          T4 and newer; TORCH=cuda12: V100, P100, drivers before 580
# docker run --rm --gpus all --shm-size=8g -v "$PWD:/data" fastft train photos --data.train=PHOTOS
FROM debian:bookworm-slim
ARG TORCH=cpu
# Compiled code is cached in the image for any x86 processor with AVX2, not for the one that builds it.
ENV PATH=/opt/venv/bin:$PATH \
    NUMBA_CACHE_DIR=/opt/numba-cache \
    NUMBA_CPU_NAME=x86-64-v3 \
    NUMBA_CPU_FEATURES=+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt
COPY . /opt/fastft
WORKDIR /opt/fastft
# The compiler stays: torch.compile needs it.
RUN command -v python3 >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates python3; }
RUN TORCH=$TORCH bash .ci/setup python3 /opt/venv export,cloud,ffcv
RUN python .ci/fill_cache.py
WORKDIR /data
ENTRYPOINT ["fastft"]
CMD ["doctor"]
