#!/usr/bin/env bash
# Entry of the server image:
#   serve [tritonserver flags]   check the artefacts, then become tritonserver (default)
#   build [nima build flags]     build the TensorRT engine with this image's TensorRT, on this GPU
#   health                       exit 0 when the server in this container answers an inference
#   anything else                run it
#
# NIMA_MODEL_REPOSITORY  folder of the models                           (/models)
# NIMA_PROFILE           default, dali or cpu                           (default)
# NIMA_INSTANCES         images at once in the profile cpu              (one a core)
# NIMA_PRECISION         fp32 or int8, the network in the profile cpu   (fp32)
# NIMA_MAX_BYTES, NIMA_MAX_PIXELS   largest image in the profile cpu   (64 MiB, 100 megapixels)
# NIMA_MPS               1: tritonserver and the decoders of the profile default share the GPU by
#                        NVIDIA MPS, with a daemon in this container    (0)
# NIMA_GRPC_PORT         where `health` asks                            (8001)
# NIMA_ADMIN_TOKEN       opens Triton's repository, shared-memory, trace and logging APIs to whoever
#                        sends it in the header nima-admin    (a random one nobody knows)
# NIMA_TRITON_ARGS       further flags for tritonserver, split at spaces
# NIMA_TLS_CA, _CERT, _KEY, _SERVER_NAME   how `health` asks a server with TLS       (plain text)
set -euo pipefail

repository=${NIMA_MODEL_REPOSITORY:-/models}
profile=${NIMA_PROFILE:-default}

fail() {
    echo "nima: $*" >&2
    exit 1
}

check_artefacts() {
    [ -f "$repository/SHA256SUMS" ] || fail "no SHA256SUMS in $repository: is the repository mounted?"
    (cd "$repository" && sha256sum --check --quiet --strict SHA256SUMS) >&2 ||
        fail "an artefact in $repository is missing or not the one SHA256SUMS names: export or build it again"
}

is_version_compatible() {
    grep -qs '"version_compatible": true' "$repository/nima_network/1/model.plan.json"
}

check_engine() {
    # Refuses a missing engine, and one of another model, GPU or TensorRT, with the reason.
    nima build --check --onnx "$repository/nima_network/1/model.onnx" >&2 ||
        fail "build the engine first: docker run --rm --gpus all -v nima-models:$repository IMAGE build"
}

start_mps() {
    export CUDA_MPS_PIPE_DIRECTORY=${CUDA_MPS_PIPE_DIRECTORY:-/tmp/nvidia-mps}
    export CUDA_MPS_LOG_DIRECTORY=${CUDA_MPS_LOG_DIRECTORY:-/tmp/nvidia-mps-log}
    mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    nvidia-cuda-mps-control -d >&2 ||
        fail "NIMA_MPS=1, but NVIDIA MPS cannot be started: it comes with the driver (--gpus all)"
}

command=${1:-serve}
[ $# -eq 0 ] || shift
case $command in
    serve)
        case $profile in
            default | dali) check_artefacts && check_engine ;;
            cpu | embedded) check_artefacts ;;
            *) fail "NIMA_PROFILE is default, dali or cpu, not '$profile'" ;;
        esac
        if [ "$profile" = cpu ]; then
            # An image a core is what a CPU serves best; the tree cannot know the cores.
            python3 -m nima_build.cpu_profile "$repository" "${NIMA_INSTANCES:-}" \
                "${NIMA_PRECISION:-}" "${NIMA_MAX_BYTES:-}" "${NIMA_MAX_PIXELS:-}"
        fi
        if [ "${NIMA_MPS:-0}" = 1 ]; then
            [ "$profile" = default ] || fail "NIMA_MPS is for the profile default, not '$profile'"
            start_mps
        fi
        flags=(--model-repository="$repository")
        [ "$profile" = default ] || flags+=(--model-config-name="$profile")
        # Such an engine brings its own runtime, which Triton must be told to run.
        case $profile in default | dali)
            ! is_version_compatible || flags+=("--backend-config=tensorrt,version-compatible=true") ;;
        esac
        # Whoever may reach the server may score, and nothing else (SECURITY.md).
        token=${NIMA_ADMIN_TOKEN:-$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')}
        closed="model-repository,shared-memory,trace,logging:nima-admin=$token"
        flags+=(--grpc-restricted-protocol="$closed" --http-restricted-api="$closed")
        # Splitting is meant, names of files in place of a * are not.
        set -f
        # shellcheck disable=SC2206
        flags+=(${NIMA_TRITON_ARGS:-})
        exec tritonserver "${flags[@]}" "$@"
        ;;
    build)
        check_artefacts
        exec nima build --target tensorrt --onnx "$repository/nima_network/1/model.onnx" "$@"
        ;;
    health)
        exec python3 -m nima_build.health "127.0.0.1:${NIMA_GRPC_PORT:-8001}" "$@"
        ;;
    *)
        exec "$command" "$@"
        ;;
esac
