/*
 * Writes the objects of each image as GeoJSON, with all that stqp notes of them.
 * For those who cannot give the project itself away. One file for each image, named after it; load_geojson puts
 * it into another project, and there stqp finds its own nuclei and their corrections. QuPath's own export loses the
 * marks of detections in 0.4 and 0.5.
 *
 * In QuPath: Automate > Project scripts > export geojson, then Run, or Run > Run for project.
 * Command line: QuPath script export_geojson.groovy --project=project.qpproj --args FOLDER
 * Arguments: the folder (default: geojson in the project); stqp: only objects that stqp wrote; or class names.
 * QuPath 0.4 to 0.7. Changes nothing in the project.
 */

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import groovy.transform.CompileStatic
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32
import org.locationtech.jts.geom.LineString
import org.locationtech.jts.geom.util.LinearComponentExtracter
import qupath.lib.roi.GeometryROI
import qupath.lib.roi.PolygonROI
import qupath.lib.roi.RectangleROI
import qupath.lib.roi.interfaces.ROI

def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException("export_geojson works on an image: open one, or choose Run > Run for project")
// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }

def image = getProjectEntry()?.getImageName() ?: imageData.getServer().getMetadata().getName()
def project = getProject()?.getPath()?.getParent()?.toFile()
if (!options && project == null)
    throw new IllegalStateException("there is no project to write into; give a folder as argument")
def folder = options ? new File(options.remove(0)) : new File(project, "geojson")
folder.mkdirs()
// a name that Windows, macOS and Linux allow, as stqp makes them; two images of one name get their ids
def safe = { it.replaceAll('[<>:"/\\\\|?*\\x00-\\x1f]', "_").trim().replaceAll('[. ]+$', "").take(100) }
def namesakes = getProject() == null ? 1 : getProject().getImageList().count {
    safe(it.getImageName()).equalsIgnoreCase(safe(image))
}
def file = new File(folder, safe(image) + (namesakes > 1 ? "-" + getProjectEntry().getID() : "") + ".geojson")

def objects = imageData.getHierarchy().getAllObjects(false).findAll {
    it.getROI() != null && !it.isTMACore() && (!options || it.getPathClass()?.toString() in options ||
        "stqp" in options && metadata(it).get("stqp.source") != null)
}
def gson = GsonTools.getInstance()
file.withWriter("UTF-8") { out ->
    out << '{"type":"FeatureCollection","features":['
    objects.eachWithIndex { object, i ->
        def feature = JsonParser.parseString(gson.toJson(object, PathObject.class)).getAsJsonObject()
        feature.addProperty("id", object.getID().toString())
        // 0.4 cannot read these again
        feature.getAsJsonObject("properties").getAsJsonObject("measurements")?.entrySet()?.removeIf { it.value.getAsString() == "NaN" }
        def noted = new LinkedHashMap(metadata(object))
        // coordinates are rounded on the way, so what counts is noted, and not the checksum
        def written = noted.get("stqp.written")
        if (written != null && !written.endsWith("|" + checksum(object.getROI())))
            noted["stqp.written"] = written.substring(0, written.lastIndexOf("|") + 1) + "changed"
        if (noted) {
            def texts = new JsonObject()
            noted.each { key, value -> texts.addProperty(key, value) }
            feature.getAsJsonObject("properties").add("metadata", texts)
        }
        out << (i ? ",\n" : "\n") << gson.toJson(feature)
    }
    out << "\n]}\n"
}
println "${image}: ${objects.size()} objects in ${file}"

/** Checksum of an outline as stqp notes it: of its vertices as floats, sorted by x, then y. */
@CompileStatic
static String checksum(ROI roi) {
    List<double[]> vertices = []
    boolean rounded = false
    if (roi instanceof GeometryROI) {
        List<LineString> rings = LinearComponentExtracter.getLines(roi.getGeometry()) as List<LineString>
        for (LineString ring : rings) {
            def places = ring.getCoordinates()
            for (int i = 0; i < places.length - 1; i++)
                vertices.add([places[i].getX(), places[i].getY()] as double[])
        }
        rounded = rings.size() != 1 // 0.6 and later round these when they save
    } else if (roi instanceof PolygonROI || roi instanceof RectangleROI) {
        for (point in roi.getAllPoints())
            vertices.add([point.getX(), point.getY()] as double[])
        if (vertices.size() > 1 && Arrays.equals(vertices.first(), vertices.last()))
            vertices.remove(vertices.size() - 1)
    } else {
        return "another shape"
    }
    List<float[]> sorted = []
    for (double[] v : vertices) {
        double x = rounded ? Math.floor(v[0] / 0.01d + 0.5d) * 0.01d : v[0]
        double y = rounded ? Math.floor(v[1] / 0.01d + 0.5d) * 0.01d : v[1]
        sorted.add([x + 0d, y + 0d] as float[]) // -0 becomes 0
    }
    sorted.sort { float[] a, float[] b -> Float.compare(a[0], b[0]) ?: Float.compare(a[1], b[1]) }
    def buffer = ByteBuffer.allocate(8 * sorted.size()).order(ByteOrder.LITTLE_ENDIAN)
    for (float[] v : sorted)
        buffer.putFloat(v[0]).putFloat(v[1])
    def crc = new CRC32()
    crc.update(buffer.array())
    return String.format("%08x", crc.getValue())
}
