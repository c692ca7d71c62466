"""Snippets of Swift for the integration page. Not yet run on a Mac."""

SWIFT_UNITS = {"ALL": "all", "CPU_AND_NE": "cpuAndNeuralEngine", "CPU_AND_GPU": "cpuAndGPU", "CPU_ONLY": "cpuOnly"}

LOADING = """\
import CoreML

// Once: Core ML compiles into a temporary folder. Keep the result at one path, where Core ML finds again what it has
// made of it for the device: the first load for the Neural Engine can take minutes.
let compiled = applicationSupport.appendingPathComponent("flow.mlmodelc")
let made = try await MLModel.compileModel(at: folder.appendingPathComponent("packages/flow.mlpackage"))
try FileManager.default.moveItem(at: made, to: compiled)

let configuration = MLModelConfiguration()
configuration.computeUnits = .UNITS                           // contract.json: stages.flow.compute_units
let model = try MLModel(contentsOf: compiled, configuration: configuration)

func array(_ file: String, _ shape: [Int]) throws -> MLMultiArray {
    let data = try Data(contentsOf: folder.appendingPathComponent(file))
    let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .float32)
    array.withUnsafeMutableBytes { bytes, _ in _ = data.copyBytes(to: bytes) }
    return array
}

let inputs = try MLDictionaryFeatureProvider(dictionary: [
    "m_p": array("vectors/flow/0/package_in/m_p.f32", shape), // and every other input of the package; in/ for a plain layout
])
let outputs = try await model.prediction(from: inputs)
let z = MLShapedArray<Float>(converting: outputs.featureValue(for: "z")!.multiArrayValue!).scalars   // rows without padding
"""

CHECKING = """\
func snr(_ reference: [Float], _ actual: [Float]) -> Double {
    let mean = reference.reduce(0.0) { $0 + Double($1) } / Double(reference.count)
    var signal = 0.0, error = 0.0
    for (r, a) in zip(reference, actual) {
        signal += (Double(r) - mean) * (Double(r) - mean)
        error += (Double(a) - Double(r)) * (Double(a) - Double(r))
    }
    return 10 * log10(signal / max(error, .leastNormalMagnitude))
}
"""
