# hasn for the CPU, with its weights and the page.
#
#     docker build -t hasn .
#     docker run --rm -p 127.0.0.1:7654:7654 hasn                                      # the page; prints its link
#     docker run --rm -v "$PWD:/pictures" -u "$(id -u):$(id -g)" hasn upscale a.jpg    # the command line

FROM python:3.11-slim AS build
RUN pip install --no-cache-dir uv
COPY . /source
WORKDIR /source
# UV_TORCH_BACKEND: PyTorch for the CPU alone is a tenth of the size
RUN uv venv /opt/hasn \
    && UV_TORCH_BACKEND=cpu uv pip install --no-cache --python /opt/hasn -c constraints.txt ".[web,heic]"

FROM python:3.11-slim
RUN useradd --uid 1000 --create-home hasn
COPY --from=build /opt/hasn /opt/hasn
ENV PATH=/opt/hasn/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER hasn
WORKDIR /pictures
EXPOSE 7654
STOPSIGNAL SIGINT
ENTRYPOINT ["hasn"]
CMD ["serve", "--host", "0.0.0.0"]
